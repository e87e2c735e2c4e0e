"""The measured map on the Map page: measuring it, looking at it, and using its cells."""

import json
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from shortviz.figures.cells import as_map
from shortviz.measure import loss_map
from shortviz.records.text import TextSpec
from shortviz.runs.run import load_run
from shortviz.service import queue
from shortviz.service.service import EXAMPLE, Service
from shortviz.ui.session import state as s
from tests.support.app import TEXT, App, colour, view

Start = Callable[..., App]


def test_a_run_without_losses_says_how_to_get_them(app: Start, tools: Service) -> None:
    run = tools.runs.get(EXAMPLE)
    assert run is not None
    tools.runs.put(EXAMPLE, type(run)(model=run.model, text=run.text, distances=run.distances))
    page = app(criterion="nll_increase")
    assert "No measured losses in this run; load the model to measure them." in page.words
    assert "read off the measured map" in view(page, "Curve").words
    assert "needs both maps" in view(page, "Agreement").words


def test_the_losses_of_every_block_are_measured_kept_and_drawn(measured: App, tools: Service) -> None:
    page = colour(measured, "nll_increase")
    assert "The losses of this model are not measured yet: press Measure." in page.words
    page.click("measure_button")
    assert page.finish("losses").state == "done"
    (folder,) = [p for p in tools.runs.folder.glob("tiny-llama-*") if (p / "run.json").is_file()]
    run = load_run(folder)
    assert run.distances is not None
    assert run.losses is not None
    assert run.losses.complete
    assert int(np.isfinite(run.losses.increase.mean).sum()) == 20
    assert not list(folder.glob("*.npz"))
    (chart,) = page.at.get("plotly_chart")
    assert "By measured NLL increase over" in chart.proto.alt
    assert "windows of 256" in page.words
    assert page.words.count("The losses are scored on the calibration text, pasted text") == 1


def test_the_inspector_takes_the_cell_of_the_map_and_says_so(measured: App, tools: Service) -> None:
    page = colour(measured, "nll_increase")
    page.click("measure_button")
    page.finish("losses")
    page.number("n").set_value(2)
    page.run()
    job = page.finish("evaluate")
    assert job.result.evaluation.nll_increase is not None
    assert "from the measured map" in page.words
    (run,) = [tools.runs.get(p.name) for p in tools.runs.folder.glob("tiny-llama-*")]
    assert run is not None
    assert not [e for e in run.evaluations if len(e.removed) == 2], "nothing was computed a second time"


def test_while_a_map_grows_the_inspector_shows_its_numbers_or_none_yet(
    measured: App, tools: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured.number("n").set_value(3)
    measured.run()
    assert measured.finish("evaluate").state == "done"
    assert measured.at.metric
    gates, calls, real = {3: threading.Event(), 9: threading.Event()}, [0], loss_map._next_group

    def gated(*args):  # noqa: ANN002, ANN202  (waits in the first look, and again in the first window)
        calls[0] += 1
        if calls[0] in gates:
            gates[calls[0]].wait(120)
        return real(*args)

    def reach(call: int) -> None:
        for _ in range(600):
            if calls[0] == call:
                return
            time.sleep(0.1)

    monkeypatch.setattr(queue, "_SNAPSHOT_SECONDS", 0.0)
    monkeypatch.setattr(loss_map, "GROUP_TOKENS", 1)
    monkeypatch.setattr(loss_map, "_next_group", gated)
    measured.state[s.EVALUATION] = TextSpec(kind="paste", value=TEXT.upper())
    page = colour(measured, "nll_increase")
    page.click("measure_button")
    try:
        reach(3)
        page.run()
        assert page.number("n").value == 3
        assert not page.at.metric, "it was measured on the text of before, which is not this map's"
        assert page.at.button(key="measure_block")
        assert "first look: " in page.words
        gates[3].set()
        reach(9)
        page.run()
        assert page.at.metric
        assert "from the measured map" in page.words
    finally:
        for gate in gates.values():
            gate.set()
    page.finish("losses")


def test_difference_agreement_and_curve_are_drawn_from_both_maps(measured: App) -> None:
    page = colour(measured, "nll_increase")
    page.click("measure_button")
    page.finish("losses")
    colour(page, "angular_last")
    next(w for w in page.at.segmented_control if w.key == s.SCALE).set_value("difference")
    page.run()
    (chart,) = page.at.get("plotly_chart")
    cells = next(trace for trace in json.loads(chart.proto.spec)["data"] if trace["type"] == "heatmap")
    assert (cells["zmin"], cells["zmax"]) == (-1, 1)
    view(page, "Agreement")
    assert len(page.at.get("plotly_chart")) == 2
    assert "Spearman" in page.words
    view(page, "Curve")
    (chart,) = page.at.get("plotly_chart")
    assert "Layers removed before the loss is 0.5 and 1 nat above" in chart.proto.alt


def test_the_table_of_agreement_is_the_key_of_the_picture_of_regret(app: Start) -> None:
    page = app(view="Agreement")
    drawn = [json.loads(chart.proto.spec) for chart in page.at.get("plotly_chart")]
    (lines,) = [one["data"] for one in drawn if len(one["data"]) == 6 and one["data"][0].get("name")]
    glyphs = {"circle": "●", "square": "■", "diamond": "◆", "cross": "✚", "triangle-up": "▲", "x": "✖"}
    (table,) = [one.value for one in page.at.dataframe]
    assert list(table["mark"]) == [glyphs[line["marker"]["symbol"]] for line in lines]
    assert list(table["criterion"]) == [line["name"] for line in lines]
    assert "angular, last token" in list(table["criterion"])


def test_a_link_restores_the_measured_map_of_a_run_that_has_one(app: Start, tools: Service) -> None:
    run = tools.runs.get(EXAMPLE)
    assert run is not None
    assert run.losses is not None, "the bundled run carries its measured map"
    page = app(criterion="kl")
    (chart,) = page.at.get("plotly_chart")
    assert "measured KL" in chart.proto.alt
    assert as_map(run.losses).criteria.keys() == {"nll_increase", "kl"}
