"""The view of another text: measured in one go, drawn as a difference, and choosing a block from it."""

import json
from collections.abc import Callable

from shortviz.progress import Watch
from shortviz.service.queue import Lane
from shortviz.service.service import Service
from tests.support.app import App, view

NONE_YET = "No distances of this model on another text: measure on more texts."


def test_without_a_second_text_the_view_says_how_to_get_one(measured: App) -> None:
    assert NONE_YET in view(measured, "Texts").words


def test_the_two_bundled_runs_are_compared_before_anything_is_measured(app: Callable[..., App]) -> None:
    page = view(app(), "Texts")
    assert NONE_YET not in page.words
    (chart,) = page.at.get("plotly_chart")
    assert "passages minus python-reference by" in chart.proto.alt


def test_several_texts_are_measured_into_runs_of_their_own_and_compared(measured: App, tools: Service) -> None:
    page = view(measured, "Texts")
    page.at.multiselect(key="more_texts").set_value(["passages/code", "passages/prose"])
    page.run().click("measure_texts")
    job = page.finish("texts")
    assert job.state == "done", job.error
    assert len(set(job.result)) == 2
    page.run()
    assert tools.runs.get(job.result[0]) is not None
    (chart,) = page.at.get("plotly_chart")
    colour = json.loads(chart.proto.spec)["data"][0]
    assert colour["zmin"] == -colour["zmax"]
    assert "minus pasted text by" in chart.proto.alt
    assert "The best start" in page.words
    picker = next(w for w in page.at.selectbox if w.key == "other_run")
    assert len(picker.options) == 2
    measured_again = page.click("measure_texts").finish("texts")
    assert measured_again.result == job.result, "texts that are known are not measured twice"


def test_a_measurement_of_texts_and_continuations_each_keep_their_handle_and_their_stop(
    measured: App, tools: Service
) -> None:
    lanes: tuple[Lane, ...] = ("long", "inspect")
    held = [tools.jobs.submit("held", "Keeps what comes after it waiting", _waits, lane=lane) for lane in lanes]
    page = view(measured, "Texts")
    page.at.multiselect(key="more_texts").set_value(["passages/code"])
    page.run().click("measure_texts")
    texts = page.state["jobs"]["texts"]
    page.page("heal").click("run_continuations")
    continuations = page.state["jobs"]["continuations"]
    assert page.state["jobs"]["texts"] == texts
    kinds = {"texts": texts, "continuations": continuations}
    found = {kind: tools.state(job) for kind, job in kinds.items()}
    assert {kind: (job.kind, job.live) for kind, job in found.items()} == {kind: (kind, True) for kind in kinds}

    page = view(page.page("map"), "Texts").click("stop_texts")
    assert tools.state(texts).state == "cancelled"
    assert tools.state(continuations).live
    page.page("heal").click("stop_continuations")
    assert tools.state(continuations).state == "cancelled"
    for job in held:
        tools.jobs.cancel(job)
        tools.jobs.wait(job, 60)


def _waits(control: Watch) -> None:
    control.stop.wait(60)
