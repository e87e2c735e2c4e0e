"""The whole path on a tiny model: load, measure, choose, read, export; in real threads, awaited by their events."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shortviz.progress import Watch
from shortviz.records.formatting import size
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, Removal
from shortviz.service.requests import ExportRequest, MeasureRequest
from shortviz.service.service import Asked, Service
from shortviz.settings import settings
from shortviz.ui.parts.notes import progress_words
from shortviz.ui.session import state as s
from shortviz.ui.session.shown import BUDGETS
from tests.support.app import App, disabled_widgets

Start = Callable[..., App]


def test_the_estimate_comes_before_the_button_that_loads(app: Start, tools: Service, tiny_folder: Path) -> None:
    page = app(model=str(tiny_folder)).page("model")
    assert page.at.button(key="load_button").disabled
    page.click("estimate_button")
    page.finish("size")
    assert {m.label: m.value for m in page.at.metric}["Layers"] == "6"
    assert not page.at.button(key="load_button").disabled


def test_a_loaded_model_stands_in_the_status_line_of_every_page(loaded: App) -> None:
    for name in ("map", "export", "runs", "model"):
        assert "6 layers · float32 · cpu" in loaded.page(name).words


def test_the_first_row_is_shown_as_tokens_once_a_model_is_loaded(loaded: App) -> None:
    page = loaded.page("model")
    assert "First row as tokens" in page.words
    assert any(" ¦ " in code.value for code in page.at.code)


def test_a_measurement_makes_a_map_and_a_run_on_disk(measured: App, tools: Service) -> None:
    (chart,) = measured.at.get("plotly_chart")
    assert "(6 layers)" in chart.proto.alt
    (folder,) = [p for p in tools.runs.folder.glob("tiny-llama-*") if (p / "run.json").is_file()]
    assert not list(folder.glob("*.npz")), "a finished measurement needs no checkpoint"


def test_choosing_a_block_measures_it_and_both_models_continue_the_prompt(measured: App, tools: Service) -> None:
    measured.number("start").set_value(2)
    measured.run()
    measured.number("n").set_value(3)
    measured.run()
    job = measured.finish("evaluate")
    assert job.state == "done"
    assert job.result.evaluation.removed == (2, 3, 4)
    labels = [m.label for m in measured.at.metric]
    assert labels == ["Perplexity", "Loss, nats per token", "KL, nats", "Same next token"]
    assert "steady" in measured.words
    assert job.result.uncut
    assert " ".join(job.result.uncut.split()) in " ".join(measured.words.split())


def test_a_measured_block_is_kept_in_the_run_and_not_measured_again(measured: App, tools: Service) -> None:
    measured.number("n").set_value(2)
    measured.run()
    measured.finish("evaluate")
    block = s.block(measured.state)
    assert block is not None
    run = next(tools.runs.get(p.name) for p in tools.runs.folder.glob("tiny-llama-*"))
    assert run is not None
    assert run.evaluation_of(block.layers) is not None
    tools.measured.clear()
    measured.number("n").set_value(1)
    measured.run()
    measured.finish("evaluate")
    measured.number("n").set_value(2)
    measured.run()
    assert measured.finish("evaluate").result.evaluation == run.evaluation_of(block.layers)


def test_following_a_link_measures_nothing_even_when_the_model_is_in_memory(
    loaded: App, tools: Service, app: Start, tiny_folder: Path
) -> None:
    before = len(tools.jobs.jobs())
    page = app(model=str(tiny_folder), start="1", n="2")
    assert "6 layers · float32 · cpu" in page.words
    assert len(tools.jobs.jobs()) == before


def test_a_second_session_attaches_to_a_job_by_its_address(measured: App, tools: Service, app: Start) -> None:
    job_id = measured.state["jobs"]["measure"]
    other = app(job=job_id)
    assert other.state["jobs"]["measure"] == job_id
    assert "(6 layers)" in other.at.get("plotly_chart")[0].proto.alt


def test_the_same_measurement_is_not_started_twice(measured: App, tools: Service) -> None:
    asked = Asked(request=MeasureRequest(model=ModelRef(id="x")))
    first = tools.run(asked, lambda watch: watch.stop.wait(60))
    assert tools.submit(MeasureRequest(model=ModelRef(id="x"))) == first
    tools.jobs.cancel(first)
    tools.jobs.wait(first)


def test_an_export_to_a_folder_is_proved_and_says_how_to_load_it(measured: App, tmp_path: Path) -> None:
    page = measured.page("export")
    target = tmp_path / "cut"
    page.at.text_input(key=s.FOLDER).set_value(str(target))
    page.run()
    page.click("export_button")
    done = page.finish("export")
    assert done.state == "done", done.error
    assert done.result.max_logit_diff == 0.0
    assert (target / "model.safetensors").is_file()
    assert (target / "mergekit.yml").is_file()
    assert page.words.count(":green[:material/check_circle:]") == 4
    assert any(str(target) in code.value for code in page.at.code)

    (tmp_path / "mine.txt").write_text("keep me")
    for taken, why in ((target, "is what was written last"), (tmp_path, "is not empty; choose another name")):
        page.at.text_input(key=s.FOLDER).set_value(str(taken))
        page.run()
        assert f"{taken} {why}" in page.words
        assert page.at.button(key="export_button").disabled
        assert page.words.count(":green[:material/check_circle:]") == 4  # the proof of what was written stays
    page.at.text_input(key=s.FOLDER).set_value("somewhere/else")
    page.run()
    assert f"Writes to {Path.home() / 'somewhere' / 'else'}." in page.words
    assert not page.at.button(key="export_button").disabled


def test_an_export_in_a_chosen_precision_takes_the_bytes_that_the_page_says(measured: App, tmp_path: Path) -> None:
    page = measured.page("export")
    choice = page.at.selectbox(key=s.PRECISION)
    assert [words.split(", about ")[0] for words in choice.options] == ["as stored", "float32", "bfloat16", "float16"]
    target = tmp_path / "half"
    page.at.text_input(key=s.FOLDER).set_value(str(target))
    choice.set_value("bfloat16")
    page.run()
    assert any("--out-dtype bfloat16" in code.value for code in page.at.code)
    page.click("export_button")
    done = page.finish("export")
    assert done.state == "done", done.error
    assert done.result.dtypes == "bfloat16"
    assert f"bfloat16, about {size(done.result.bytes)}" in page.at.selectbox(key=s.PRECISION).options


def test_an_export_as_zip_leaves_one_file_to_download(measured: App, tools: Service) -> None:
    page = measured.page("export")
    page.at.get("button_group")[0].set_value("zip")
    page.run()
    page.click("export_button")
    done = page.finish("export")
    assert done.state == "done", done.error
    assert done.result.folder.endswith(".zip")
    assert Path(done.result.folder).is_file()
    assert not Path(done.result.folder).with_suffix("").exists()
    assert "Download" in page.at.get("download_button")[0].label


def test_an_adapter_that_is_being_written_is_followed_by_a_session_that_attaches_to_it(
    loaded: App, app: Start, tools: Service, tiny_folder: Path, tmp_path: Path
) -> None:
    cut = Removal(block=Block(start=2, n=2))
    request = ExportRequest(
        model=ModelRef(id=str(tiny_folder)), removal=cut, folder=str(tmp_path), methods=("lora",), adapter_only=True
    )
    job = tools.run(Asked(request=request), lambda control: control.stop.wait(60))
    app(job=job, start="2", n="2").page("export").click("cancel_export")
    assert tools.jobs.wait(job, 60) is not None
    assert not tools.jobs.state(job).live


def test_a_waiting_job_says_what_it_waits_for_but_not_to_strangers(
    tools: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = threading.Event(), threading.Event()

    def first(watch: Watch) -> None:
        begun.set()
        release.wait(60)

    tools.jobs.submit("heal", "Healing of x", first)
    second = tools.jobs.submit("measure", "Distances of x", lambda watch: None)
    try:
        assert begun.wait(60)
        waiting = tools.state(second)
        assert waiting is not None
        assert progress_words(waiting) == "waits for: Healing of x"
        assert [job.title for job in tools.running()] == ["Healing of x", "Distances of x"]
        monkeypatch.setenv("SHORTVIZ_HOSTED", "1")
        settings.cache_clear()
        assert tools.running() == ()
        tools._hold(second, tools.visitor(), "sees")
        waiting = tools.state(second)
        assert waiting is not None
        assert progress_words(waiting) == "waiting, number 1 in the queue"
    finally:
        release.set()
        monkeypatch.undo()
        settings.cache_clear()


@pytest.mark.parametrize("budget", list(BUDGETS))
def test_before_anything_is_measured_the_answer_says_why_its_slider_is_off(loaded: App, budget: str) -> None:
    loaded.state[s.BUDGET] = budget
    found = dict(disabled_widgets(loaded.page("map")))
    assert len({"By", "Remove", "Remove as much as costs at most"} & set(found)) == 2
    assert [label for label, why in found.items() if not why] == []
