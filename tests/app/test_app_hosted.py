"""The app as strangers meet it: links, widgets and job ids of others cross no limit; what it is for still works."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from shortviz.errors import PolicyError
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, Removal
from shortviz.records.text import TextSpec
from shortviz.service.requests import EvaluateRequest, ExportRequest, LoadRequest, MeasureRequest, SizeRequest
from shortviz.service.service import Asked, Service
from shortviz.settings import Settings, settings
from shortviz.ui.parts.notes import plain
from shortviz.ui.parts.texts import store_upload
from shortviz.ui.session import state as s
from shortviz.ui.session.service import bench
from tests.support.app import TEXT, App
from tests.support.ledgers import fixture_ledger
from tests.support.paths import ROOT

Start = Callable[..., App]


@pytest.fixture(autouse=True)
def rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path) -> Iterator[Settings]:
    """A hosted installation that offers the tiny model."""
    for name, value in {
        "HOSTED": "1",
        "RUNS_DIR": str(tmp_path / "hosted-runs"),
        "ALLOWED_MODELS": f"{tiny_folder},demo",
        "MIN_FREE_MB": "0",
    }.items():
        monkeypatch.setenv(f"SHORTVIZ_{name}", value)
    settings.cache_clear()
    yield settings()
    settings.cache_clear()


HOSTILE_LINKS = {
    "another model": {"model": "meta-llama/Llama-3.1-405B"},
    "a folder": {"model": "/etc"},
    "a model with markup": {"model": "![x](http://attacker/p.png)<script>alert(1)</script>"},
    "a proposed commit": {"model": "demo", "rev": "refs/pr/1"},
    "an endless model": {"model": "x" * 10_000},
    "a run that is a path": {"run": "../../../etc"},
    "a run that is absolute": {"run": "/etc/passwd"},
    "a run that is not there": {"run": "nothing-0123456789"},
    "a job that is not there": {"job": "0123456789ab"},
    "an endless job": {"job": "0" * 10_000},
    "a huge block": {"start": "99999999999999999999", "n": "1"},
    "a negative block": {"start": "-1", "n": "-1"},
    "a block that is not a number": {"start": "NaN", "n": "Infinity"},
    "digits of another script": {"start": "\N{ARABIC-INDIC DIGIT THREE}", "n": "\N{SUPERSCRIPT TWO}"},
    "an unknown criterion": {"criterion": "__class__", "metric": "../x", "view": "<b>", "scale": "'", "palette": "\0"},
    "a text that is a file": {"text": "file:/etc/passwd"},
    "an unknown field": {"hosted": "0", "owner": "me", "_st": "x"},
}


def test_a_hostile_link_opens_the_bundled_run_and_starts_nothing(app: Start, tools: Service) -> None:
    for name, parameters in HOSTILE_LINKS.items():
        page = app(**parameters)
        assert tools.jobs.jobs() == (), name
        assert page.at.get("plotly_chart"), name
        assert s.REF not in page.state, name
        assert page.state[s.OWNER] not in ("", "me"), name


def test_a_model_that_is_not_offered_is_told_once(app: Start) -> None:
    page = app(model="org/other")
    assert any("offers only" in error and "org/other" in error for error in page.errors)
    assert not page.run().errors


@pytest.fixture
def loaded(tools: Service, app: Start, tiny_folder: Path) -> App:
    """A session with the offered model in memory, loaded from the status line's button."""
    page = app(model=str(tiny_folder))
    page.click("load_shown")
    done = tools.jobs.wait(page.state["jobs"]["load"], 60)
    assert done is not None
    assert done.state == "done", done.error
    page.state[s.CALIBRATION] = TextSpec(kind="paste", value=TEXT, max_length=64)
    page.state[s.EVALUATION] = TextSpec(kind="paste", value=TEXT)
    return page.run()


def test_what_the_demo_is_for_works(loaded: App, tools: Service) -> None:
    page = loaded.click("measure_button")
    done = tools.jobs.wait(page.state["jobs"]["measure"], 60)
    assert done is not None
    assert done.state == "done", done.error
    page = page.run().page("export")
    assert not page.at.text_input
    page.click("export_button")
    done = tools.jobs.wait(page.state["jobs"]["export"], 60)
    assert done is not None
    assert done.state == "done", done.error
    assert Path(done.result.folder).is_relative_to(settings().downloads_dir)


def test_only_the_owner_sees_and_cancels_a_job(loaded: App, tools: Service, app: Start, tiny_folder: Path) -> None:
    ref = ModelRef(id=str(tiny_folder))
    # Started by the session itself: its script submits, on its next run, what the test puts in its way.
    loaded.state[s.CALIBRATION] = TextSpec(kind="paste", value=TEXT * 20, max_length=64)
    held = tools.models._loading
    with held:  # the job waits for the model, and the model is not given
        tools.models._handles.clear()
        loaded.state[s.REF] = ref
        loaded.run().click("load_shown")
        job_id = loaded.state["jobs"]["load"]
        stranger = app(job=job_id, model=str(tiny_folder))
        assert "jobs" not in stranger.state
        stranger.state["jobs"] = {"load": job_id}  # even where a session had come by the id
        stranger.run()
        assert not [b for b in stranger.at.button if b.key == f"end_{job_id}"]
        tools.stop(job_id)  # nobody's script: not the owner's
        live = tools.jobs.state(job_id)
        assert live is not None
        assert live.live
        assert not live.stopping
        assert "job" not in loaded.at.query_params
        loaded.run().click(f"end_{job_id}")
        live = tools.jobs.state(job_id)
        assert live is not None
        assert live.stopping or not live.live
    tools.jobs.wait(job_id, 60)


def test_of_two_visitors_with_one_measurement_each_has_their_own_stop_end_and_run(
    loaded: App, tools: Service, app: Start, tiny_folder: Path
) -> None:
    def keys(page: App) -> set[str]:
        return {button.key for button in page.at.button}

    spec, name = (
        TextSpec(kind="paste", value=TEXT * 10, limit=64, max_length=64),
        f"Distances of {tiny_folder} on pasted text",
    )
    first, second = loaded, app(model=str(tiny_folder))
    with tools.models._loading:  # the job waits for the model
        for page in (first, second):
            page.state[s.CALIBRATION] = spec
            page.run().click("measure_button")
        job_id = first.state["jobs"]["measure"]
        assert second.state["jobs"]["measure"] == job_id
        first.click("stop_button")
        assert [toast.value for toast in first.at.toast] == [f"{plain(name)}: stopped; others go on with it"]
        assert keys(first) & {"measure_button", "stop_button", f"end_{job_id}"} == {"measure_button"}
        assert keys(second.run()) & {"measure_button", "stop_button"} == {"stop_button"}
        assert f"end_{job_id}" in keys(second)
    done = tools.jobs.wait(job_id, 60)
    assert done is not None
    assert done.state == "done", done.error
    assert [toast.value for toast in second.run().at.toast] == [f"{plain(name)}: done"]
    for page, own in ((first, True), (second, True), (app(), False)):  # whose text it is, and who came later
        (table,) = page.page("runs").at.dataframe
        assert ("yours" in table.value) == own
        assert (table.value["text"][0] == "pasted text") == own


def test_a_model_writes_its_training_text_within_the_limits_that_the_page_keeps(loaded: App, tools: Service) -> None:
    loaded.state[s.CHOSEN] = Block(start=2, n=2)
    loaded.state[s.TRAINING] = TextSpec(kind="builtin", value="python-reference", limit=24, max_length=64)
    page = loaded.page("heal")
    page.at.selectbox(key=s.TRAIN_ON).select("Half and half")
    tokens = page.run().at.number_input(key="recipe_self_tokens")
    assert tokens.max == settings().max_tokens
    page.click("heal_button")
    job = tools.jobs.state(page.state["jobs"]["heal"])
    assert job is not None
    assert "hosted demo" not in job.error, "the length of a text is not that of one's own machine"
    tools.jobs.cancel(job.id)


def test_the_tokens_of_a_repair_keep_to_a_limit_below_the_usual_number(
    loaded: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORTVIZ_MAX_TOKENS", "8192")
    settings.cache_clear()
    loaded.state[s.CHOSEN] = Block(start=2, n=2)
    tokens = loaded.page("heal").at.number_input(key=s.FIT_TOKENS)
    assert (tokens.value, tokens.max) == (8192, 8192)


def test_a_job_that_may_not_start_has_failed_with_the_reason(tools: Service, tiny_folder: Path) -> None:
    ref = ModelRef(id=str(tiny_folder))
    spec, first = TextSpec(kind="paste", value="Some words."), Removal(block=Block(start=0, n=1))
    refused = [
        tools.submit(LoadRequest(model=ModelRef(id="/etc"), text=spec)),
        tools.submit(SizeRequest(model=ModelRef(id="org/other"))),
        tools.submit(MeasureRequest(model=ref, text=TextSpec(kind="file", value="/etc/passwd")), key="key"),
        tools.submit(ExportRequest(model=ref, removal=first, folder="/tmp/x")),
        tools.submit(EvaluateRequest(model=ref, removal=first, text=spec, write="x" * 10_000)),
        tools.run(Asked(request=LoadRequest(model=ModelRef(id="x"))), lambda watch: None),
    ]
    for job_id in refused:
        job = tools.jobs.state(job_id)
        assert job is not None
        assert job.state == "failed"
        assert "hosted demo" in job.error
        assert not job.error_is_ours


def test_size_and_time_are_judged_inside_the_job(
    monkeypatch: pytest.MonkeyPatch, tools: Service, tiny_folder: Path
) -> None:
    monkeypatch.setenv("SHORTVIZ_MAX_PARAMETERS", "1000")
    monkeypatch.setenv("SHORTVIZ_MAX_JOB_SECONDS", "1")
    settings.cache_clear()
    job = tools.jobs.wait(tools.submit(LoadRequest(model=ModelRef(id=str(tiny_folder)))), 60)
    assert job is not None
    assert job.state == "failed"
    assert "million parameters" in job.error
    assert tools.models.get(ModelRef(id=str(tiny_folder))) is None
    slow = Asked(request=SizeRequest(model=ModelRef(id="demo")))
    job = tools.jobs.wait(tools.run(slow, lambda watch: watch.stop.wait(60)), 30)
    assert job is not None
    assert job.state == "cancelled"


def test_the_model_page_offers_the_list_and_the_text_picker_no_paths(app: Start, tiny_folder: Path) -> None:
    page = app().page("model")
    assert page.at.selectbox(key=s.PRESET).options == [
        str(tiny_folder),
        "demo: SmolLM2-135M-Instruct, embedded, no network needed",
    ]
    page.at.get("button_group")[1].set_value("file")
    page.run()
    assert [w.label for w in page.at.text_input if "path" in w.label] == []


def test_old_runs_make_room_for_new_ones(monkeypatch: pytest.MonkeyPatch, tools: Service) -> None:
    monkeypatch.setenv("SHORTVIZ_MAX_RUNS", "2")
    settings.cache_clear()
    run = bench().runs.get("example")
    assert run is not None
    for key in ("one", "two", "three"):
        tools.runs.put(key, dataclasses.replace(run, name=key))
    assert len(list(tools.runs.folder.glob("*/run.json"))) == 2
    assert (tools.runs.folder / "three").is_dir()


def test_no_code_of_the_app_starts_or_looks_at_jobs_past_the_bench() -> None:
    """`Bench.submit`, `state` and `context` are where the policy and the owners are; the registry knows neither."""
    past = re.compile(r"\.jobs\.(submit|state|jobs|wait|refuse|cancel)\b|_contexts|_visitors")
    folders = [ROOT / "shortviz" / name for name in ("ui", "service")]
    found = {path.name for folder in folders for path in folder.rglob("*.py") if past.search(path.read_text())}
    assert found == {"service.py"}


def test_what_a_visitor_asked_a_model_is_not_kept_where_others_see_it(tools: Service) -> None:
    run = tools.runs.get("example")
    assert run is not None
    ledger = fixture_ledger(run.model)
    assert ledger.prompt
    tools.runs.put("shared", dataclasses.replace(run, ledgers=(ledger,)))
    kept = tools.runs.get("shared")
    assert kept is not None
    assert [one.prompt for one in kept.ledgers] == [""]
    assert ledger.prompt not in (tools.runs.folder / "shared" / "run.json").read_text(encoding="utf-8")
    assert [step.evaluation.score for step in kept.ledgers[0].steps] == [s.evaluation.score for s in ledger.steps]


def test_a_prompt_and_what_a_model_makes_of_it_are_never_markup(loaded: App, tools: Service) -> None:
    hostile = "![x](http://attacker.example/p.png) <script>alert(1)</script> $\\LaTeX$ :red[x]"
    page = loaded.page("map")
    page.state[s.PROMPT] = hostile
    page.run().click("run_prompt")
    done = tools.jobs.wait(page.state["jobs"]["evaluate"], 60)
    assert done is not None
    assert done.state == "done", done.error
    page.run()
    marked_up = [e.value for kind in (page.at.markdown, page.at.caption, page.at.warning, page.at.error) for e in kind]
    assert len(marked_up) > 3
    assert not [value for value in marked_up if "attacker.example" in value or "<script>" in value]


def test_uploads_are_small_few_and_named_by_their_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORTVIZ_MAX_RUNS", "2")
    settings.cache_clear()

    class Upload:
        def __init__(self, name: str, content: bytes) -> None:
            self.name, self._content = name, content

        def getvalue(self) -> bytes:
            return self._content

    for number in range(4):
        path = store_upload(Upload("../../../etc/cron.d/evil.py", f"words {number}".encode()))
        assert path.parent == settings().uploads_dir
        assert path.suffix == ".txt"
    assert len(list(settings().uploads_dir.iterdir())) == 2
    with pytest.raises(PolicyError):
        store_upload(Upload("large.txt", b"x" * 6_000_000))


@pytest.mark.parametrize(("hosted", "shown"), [("1", 0), ("0", 1)])
def test_the_traceback_of_a_fault_is_not_for_strangers(
    monkeypatch: pytest.MonkeyPatch, hosted: str, shown: int
) -> None:
    def page() -> None:
        from shortviz.service.queue import JobState
        from shortviz.ui.parts import notes

        failed = {"error": "It failed.", "error_is_ours": True, "traceback": "File /srv/secret.py"}
        notes.job_error(JobState(id="a", kind="measure", title="t", state="failed", **failed))

    monkeypatch.setenv("SHORTVIZ_HOSTED", hosted)
    settings.cache_clear()
    try:
        at = AppTest.from_function(page).run(timeout=30)
    finally:
        monkeypatch.undo()
        settings.cache_clear()
    assert len(at.code) == shown
