"""The view of another text: measured in one go, drawn as a difference, and choosing a block from it."""

import json
from collections.abc import Callable

from shortviz.ui.resources import Bench
from tests.app.conftest import App
from tests.app.test_app_measured import view

NONE_YET = "No distances of this model on another text: measure on more texts."


def test_without_a_second_text_the_view_says_how_to_get_one(measured: App) -> None:
    assert NONE_YET in view(measured, "Texts").words


def test_the_two_bundled_runs_are_compared_before_anything_is_measured(app: Callable[..., App]) -> None:
    page = view(app(), "Texts")
    assert NONE_YET not in page.words
    (chart,) = page.at.get("plotly_chart")
    assert "passages minus python-reference by" in chart.proto.alt


def test_several_texts_are_measured_into_runs_of_their_own_and_compared(measured: App, tools: Bench) -> None:
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
