"""An opened run stays the run: its texts are the session's, and what is measured and repaired goes into it."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shortviz.measure import distances
from shortviz.progress import Progress, Watch
from shortviz.records.json import to_json
from shortviz.records.model import ModelRef
from shortviz.records.text import TextSpec, text_options
from shortviz.service.execute import execute
from shortviz.service.measure import APP_WINDOWS
from shortviz.service.requests import MapRequest, MeasureRequest
from shortviz.service.service import Service, StorePlace, run_key
from shortviz.settings import settings
from shortviz.ui.session import opened
from shortviz.ui.session import state as s
from tests.support.app import TEXT, App, colour
from tests.support.records import fixture_run

Start = Callable[..., App]
CALIBRATION = TextSpec(kind="builtin", value="passages/german", limit=3, max_length=48, bos="never")
EVALUATION = TextSpec(kind="builtin", value="passages/french")


@pytest.fixture
def mine(loaded: App, tools: Service) -> str:
    """The key of a run that a person named, of other texts than the usual ones; its map took a thousand seconds."""
    loaded.state[s.CALIBRATION], loaded.state[s.EVALUATION] = CALIBRATION, EVALUATION
    page = loaded.page("map")
    page.click("measure_button")
    done(page, "measure")
    page.click("measure_block")
    done(page, "evaluate")
    (folder,) = tools.runs.folder.glob("tiny-llama-*")
    run = tools.runs.get(folder.name)
    assert run is not None
    tools.runs.remove(folder.name)
    slow = replace(run.distances, seconds=1000.0)
    tools.runs.put("mine", replace(run, name="German first", tags=("paper",), note="n", distances=slow))
    tools.measured.clear()
    return "mine"


def reopen(page: App, key: str) -> App:
    page.page("runs").at.multiselect(key=s.PICKED).set_value([key])
    page.run().click("open_run")
    return page.page("map")


def done(page: App, kind: str) -> None:
    job = page.finish(kind)
    assert job.state == "done", job.error


def runs_of(tools: Service) -> list[str]:
    return sorted(file.parent.name for file in tools.runs.folder.glob("[!.]*/run.json"))


def test_a_run_opened_by_its_link_is_the_one_that_grows(mine: str, app: Start, tools: Service) -> None:
    page = app(run=mine, start="1", n="1")
    assert (s.calibration(page.state), s.evaluation(page.state)) == (CALIBRATION, EVALUATION)
    page.click("load_shown")
    done(page, "load")
    page.finish("evaluate")
    colour(page, "angular_last").click("measure_button")
    assert page.state[s.RUN] == mine
    done(page, "measure")
    colour(page, "nll_increase").click("measure_button")
    done(page, "losses")
    page.click("repair_cell")
    done(page, "repair")
    assert (page.state[s.RUN], page.errors) == (mine, [])
    run = tools.runs.get(mine)
    assert run is not None
    assert (run.name, run.tags, run.note) == ("German first", ("paper",), "n")
    assert run.distances.seconds < 1000
    assert run.losses is not None
    assert run.losses.text.source == "built-in passages/french"
    assert [ledger.text.source for ledger in run.ledgers] == ["built-in passages/french"]
    assert runs_of(tools) == [mine]


def test_a_stopped_measurement_of_an_opened_run_tells_its_tokens_and_goes_on_in_it(
    mine: str, loaded: App, tools: Service, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distances, "CHECKPOINT_SECONDS", -1.0)
    ref, stop = ModelRef(id=str(tiny_folder)), threading.Event()
    run = tools.runs.get(mine)
    assert run is not None
    tools.runs.put(mine, replace(run, distances=None))

    def heard(step: Progress) -> None:
        if step.stage == "measure" and step.done:
            stop.set()

    request = MeasureRequest(model=ref, text=CALIBRATION, batch_size=1)
    part = execute(request, Watch(heard, stop), service=tools, place=StorePlace(tools.runs, mine))
    assert part.distances.samples == 1
    page = colour(reopen(loaded, mine), "angular_last")
    assert f"Averaged over 1 of 3 rows of {run.text.source}, {part.distances.tokens} tokens" in page.words
    assert 0 < part.distances.tokens < part.distances.text.tokens
    assert page.at.button(key="measure_button").label == "Go on"
    page.click("measure_button")
    done(page, "measure")
    assert (tools.runs.get(mine).distances.samples, runs_of(tools)) == (3, [mine])
    assert page.at.button(key="measure_button").label == "Measure"
    assert "Averaged over 3 rows" in page.words

    page.state[s.CALIBRATION] = replace(CALIBRATION, value="passages/prose")  # as a file that has changed since
    page.run().click("measure_button")
    job = page.finish("measure")
    assert "has other tokens than built-in passages/german, which the run German first was measured on" in job.error
    assert tools.runs.get(mine).distances.samples == 3


def test_a_stopped_map_does_not_push_out_a_whole_one(mine: str, tools: Service, tiny_folder: Path) -> None:
    stop = threading.Event()

    def heard(step: Progress) -> None:
        if step.stage == "measure" and step.done:
            stop.set()

    request = MeasureRequest(model=ModelRef(id=str(tiny_folder)), text=CALIBRATION, batch_size=1)
    execute(request, Watch(heard, stop), service=tools, place=StorePlace(tools.runs, mine))
    assert tools.runs.get(mine).distances.samples == 3


def saved(tools: Service, key: str, text: TextSpec, source: str) -> None:
    """Keep a run that says it was measured on a text."""
    run = fixture_run(6)
    info = replace(run.text, source=source, options=text_options(text), max_length=text.max_length, rows=5)
    tools.runs.put(key, replace(run, text=info, evaluations=()))


def test_a_text_that_is_not_here_is_asked_for_and_never_replaced_by_the_usual_one(
    app: Start, tools: Service, tmp_path: Path
) -> None:
    file = tmp_path / "c4.txt"
    saved(tools, "file", TextSpec(kind="file", value=str(file), max_length=64), "file c4.txt")
    saved(tools, "paste", TextSpec(kind="paste", value="x", max_length=64), "pasted text")
    page = app(run="file")
    assert "The calibration text of this run, file c4.txt, is not here: give it on the Model page" in page.words
    assert s.calibration(page.state) == TextSpec(kind="file", value="c4.txt", max_length=64, limit=5)
    file.write_text(TEXT)
    page.page("model")
    assert page.state[s.RUN] == "file", "looking at the page chooses nothing"
    page.at.text_input(key="calibration_path_1").set_value(str(file))
    page.run()
    assert (page.state[s.RUN], s.calibration(page.state).value) == ("file", str(file))
    assert "is not here" not in page.run().words
    next(w for w in page.at.segmented_control if w.key == "calibration_kind_1").set_value("builtin")
    page.run()
    assert s.RUN not in page.state, "another text is another run"

    page = app(run="paste")
    assert "The calibration text of this run, pasted text, is not here" in page.words
    assert s.calibration(page.state) == TextSpec(kind="paste", value="", max_length=64, limit=5)
    page.page("model").at.text_area(key="calibration_paste_1").set_value(TEXT)
    page.run()
    assert (page.state[s.RUN], s.calibration(page.state).value) == ("paste", TEXT)


def test_the_inputs_of_texts_follow_a_run_that_is_opened_later(app: Start, tools: Service) -> None:
    saved(tools, "german", CALIBRATION, "built-in passages/german")
    page = app("model")
    page.at.number_input(key="calibration_limit").set_value(7)
    page.run()
    reopen(page, "german").page("model")
    assert page.at.selectbox(key="calibration_builtin_1").value == "passages/german"
    assert page.at.number_input(key="calibration_length_1").value == CALIBRATION.max_length
    assert (page.state[s.RUN], s.calibration(page.state).value) == ("german", "passages/german")


def test_another_model_than_the_run_s_is_said_and_the_run_s_offered(mine: str, loaded: App, tools: Service) -> None:
    run = tools.runs.get(mine)
    assert run is not None
    tools.runs.put("half", replace(run, model=replace(run.model, dtype="bfloat16")))
    tools.runs.put("other", fixture_run(6))
    page = reopen(loaded, "half")
    assert "float32) is loaded, and this run is of" in page.words
    assert page.at.button(key="measure_button").disabled
    page.click("load_shown")
    assert tools.context(page.state["jobs"]["load"]).request.model.dtype == "bfloat16"
    done(page, "load")
    assert page.state[s.RUN] == "half"
    assert not page.at.button(key="measure_button").disabled
    reopen(page, "other")
    assert "Another model is loaded: **run formula** of demo" in page.words


def test_the_bundled_map_is_not_shown_for_another_text(app: Start) -> None:
    page = app(model="demo", text="builtin:passages/german?limit=3")
    assert not page.at.get("plotly_chart")
    assert "This text is not measured yet: load the model to measure it." in page.words
    assert "By" in app(model="demo", text="builtin:passages?limit=64").at.get("plotly_chart")[0].proto.alt


def test_a_reload_while_an_opened_run_is_measured_keeps_it_open(mine: str, app: Start, tools: Service) -> None:
    request = MapRequest(model=ModelRef(id=tools.runs.get(mine).model.id), text=EVALUATION, windows=APP_WINDOWS)
    with tools.models._loading:
        tools.models._handles.clear()
        job = tools.submit(request, key=mine)
        page = app(job=job, run=mine)
        assert (page.state[s.RUN], s.calibration(page.state)) == (mine, CALIBRATION)
        assert s.evaluation(page.state) == EVALUATION
        tools.jobs.cancel(job)
    tools.jobs.wait(job, 60)


def test_where_strangers_meet_what_is_measured_in_an_opened_run_goes_into_a_copy(
    app: Start, tools: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHORTVIZ_HOSTED", "1")
    monkeypatch.setenv("SHORTVIZ_RUNS_DIR", str(tmp_path / "hosted"))
    settings.cache_clear()
    try:
        saved(tools, "theirs", CALIBRATION, "built-in passages/german")
        page, other = app(run="theirs"), app(run="theirs")
        before = to_json(tools.runs.get("theirs"))
        words, where = opened.run_words(page.state, "theirs", tools.runs.get("theirs"))
        assert (words, "a copy of your own" in where) == ("formula", True)
        key = opened.own_copy(tools, page.state, "theirs")
        assert (page.state[s.RUN], opened.goes_into(page.state, ModelRef(id="demo"))) == (key, key)
        assert opened.own_copy(tools, page.state, key) == key
        assert opened.own_copy(tools, other.state, "theirs") not in ("theirs", key)
        assert to_json(tools.runs.get(key)) == before
        assert opened.goes_into({s.RUN: "example"}, ModelRef(id="demo")) == run_key(
            ModelRef(id="demo"), s.calibration({})
        )
    finally:
        monkeypatch.undo()
        settings.cache_clear()
