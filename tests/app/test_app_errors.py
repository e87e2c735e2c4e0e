"""Bad input on the pages: one clear sentence each, and nothing lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shortviz.records.model import ModelRef
from shortviz.records.plan import Removal
from shortviz.records.text import TextSpec
from shortviz.service.requests import ExportRequest
from shortviz.service.service import Service
from shortviz.ui.session import state as s
from tests.support.app import App, plain

Start = Callable[..., App]


def load(page: App) -> App:
    page.page("model")
    page.click("estimate_button")
    page.finish("size")
    page.click("load_button")
    page.finish("load")
    return page


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be spoilt."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "spoilt"))


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields), encoding="utf-8")


def not_there(folder: Path) -> str:
    shutil.rmtree(folder)
    return "spoilt"


def encoder_only(folder: Path) -> str:
    change_config(folder, model_type="bert", architectures=["BertModel"])
    return "encoder-only"


def remote_code(folder: Path) -> str:
    change_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model"})
    return "code"


def pickled(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "safetensors"


def truncated(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return "model.safetensors"


def not_a_number(folder: Path) -> str:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, path, metadata={"format": "pt"})
    return "NaN"


def one_layer(folder: Path) -> str:
    change_config(folder, num_hidden_layers=1)
    return "layer"


@pytest.mark.parametrize("spoil", [not_there, encoder_only, remote_code, pickled, truncated, not_a_number, one_layer])
def test_a_model_that_is_refused_says_why_before_the_button(
    app: Start, copy: Path, spoil: Callable[[Path], str]
) -> None:
    word = spoil(copy)
    page = app(model=str(copy)).page("model")
    page.click("estimate_button")
    failed = page.finish("size")
    if failed.state == "done":  # the header is whole; the weights behind it are not
        page.click("load_button")
        failed = page.finish("load")
    assert failed.state == "failed"
    assert not failed.error_is_ours, failed.traceback
    assert any(word in error for error in page.errors), page.errors
    assert len(page.errors) == 1, "said once, not above the page and again beside the button"
    assert "No model loaded" in page.words
    empty = page.page("map")
    assert "This text is not measured yet: load the model to measure it." in empty.words
    assert not empty.at.get("plotly_chart")


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("missing.txt", None, "missing.txt"),
        ("empty.txt", b"", "empty"),
        ("binary.txt", b"\x00\xff\x00\xfe" * 100, "binary"),
        ("lines.jsonl", b'{"text": \n', "Line 1"),
        ("column.jsonl", b'{"title": 7}\n', "text"),
    ],
)
def test_a_text_file_that_cannot_be_used_is_explained_at_once(
    app: Start, tmp_path: Path, name: str, content: bytes | None, word: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    page = app()
    page.state[s.CALIBRATION] = TextSpec(kind="file", value=str(path), limit=None)
    page.page("model")
    assert len(page.errors) == 1
    assert word in page.errors[0]
    assert not page.at.exception


def test_rows_that_are_all_too_short_fail_the_measurement_and_say_so(
    app: Start, tools: Service, tiny_folder: Path
) -> None:
    page = load(app(model=str(tiny_folder)))
    page.state[s.CALIBRATION] = TextSpec(kind="paste", value="a")
    page.page("map")
    page.click("measure_button")
    assert page.finish("measure").state == "failed"
    assert any("shorter than 2 tokens" in error for error in page.errors)
    assert not list(tools.runs.folder.glob("*/run.json"))


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("{here}/taken", "taken is not empty; choose another name"),
        ("{here}/taken/mine.txt/deeper", "mine.txt (it is a file); choose a folder you may write to"),
        ("/proc/nope", "Nothing can be written to /proc ("),
        ("{here}/" + "a" * 250, "(File name too long); choose a folder you may write to"),
        ("taken", "home/taken is not empty; choose another name"),
        (" ", "Give the export a name."),
    ],
)
def test_an_export_that_cannot_be_written_is_refused_before_the_press_in_the_words_of_the_press(
    app: Start, tools: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, why: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for taken in (tmp_path / "taken", tmp_path / "home" / "taken"):
        taken.mkdir(parents=True)
        (taken / "mine.txt").write_text("keep me")
    page = app(first_page="export", start="12", n="4")
    page.at.text_input(key=s.FOLDER).set_value(typed.format(here=tmp_path))
    page.run()
    button = page.at.button(key="export_button")
    said = plain(button.proto.help)
    assert button.disabled
    assert why in said
    assert f":orange[:material/warning: {said}]" in page.words
    if typed.strip():
        folder = str(tmp_path / "home" / typed.format(here=tmp_path))
        asked = ExportRequest(model=ModelRef(id="demo"), folder=folder, removal=Removal(layers=(12,)))
        pressed = tools.jobs.wait(tools.submit(asked))
        assert pressed is not None
        assert pressed.error == said
    assert (tmp_path / "taken" / "mine.txt").read_text() == "keep me"


def test_a_fault_of_ours_shows_its_traceback_only_in_an_expander(app: Start, tools: Service, tiny_folder: Path) -> None:
    from shortviz.service.requests import LoadRequest
    from shortviz.service.service import Asked

    def work(watch: object) -> None:
        raise RuntimeError("loose <b>screw</b>")

    ref = ModelRef(id=str(tiny_folder))
    job_id = tools.run(Asked(request=LoadRequest(model=ref)), work)
    tools.jobs.wait(job_id)
    page = app(model=str(tiny_folder))
    s.set_job(page.state, "load", job_id)
    page.run()
    assert any("a fault in shortviz" in error for error in page.errors)
    assert r"\<b\>screw" in page.at.error[0].value
    assert any("Traceback" in code.value for code in page.at.expander[0].code)


def test_a_column_that_is_not_there_is_told_by_the_label_of_its_input(loaded: App, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"body": "some words"}\n')
    loaded.state[s.CALIBRATION] = TextSpec(kind="file", value=str(rows))
    page = loaded.page("map")
    (helped,) = [each.help for each in page.at.caption if each.value == "Reads your file"]
    assert "Choose one of them with Column" in helped.replace("\\", "")
    assert "`" not in helped
