"""The measured map on the Map page: measuring it, looking at it, and using its cells."""

import json
from collections.abc import Callable

import numpy as np

from shortviz.figures.cells import as_map
from shortviz.runs.run import load_run
from shortviz.service.service import EXAMPLE, Service
from tests.support.app import App, show, view

Start = Callable[..., App]


def test_a_run_without_losses_says_how_to_get_them(app: Start, tools: Service) -> None:
    run = tools.runs.get(EXAMPLE)
    assert run is not None
    tools.runs.put(EXAMPLE, type(run)(model=run.model, text=run.text, distances=run.distances))
    page = app(show="measured")
    assert "No measured losses in this run; load the model to measure them." in page.words
    assert "read off the measured map" in view(page, "Curve").words
    assert "needs both maps" in view(page, "Agreement").words


def test_the_losses_of_every_block_are_measured_kept_and_drawn(measured: App, tools: Service) -> None:
    page = show(measured, "measured")
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
    page = show(measured, "measured")
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


def test_difference_agreement_and_curve_are_drawn_from_both_maps(measured: App) -> None:
    page = show(measured, "measured")
    page.click("measure_button")
    page.finish("losses")
    show(page, "difference")
    (chart,) = page.at.get("plotly_chart")
    colour = next(trace for trace in json.loads(chart.proto.spec)["data"] if trace["type"] == "heatmap")
    assert (colour["zmin"], colour["zmax"]) == (-1, 1)
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
    page = app(show="measured", metric="kl")
    (chart,) = page.at.get("plotly_chart")
    assert "measured KL" in chart.proto.alt
    assert as_map(run.losses).criteria.keys() == {"nll_increase", "kl"}
