"""The lines that the app offers do what they say: the Python runs, the command is one that the command line takes."""

import shlex
from pathlib import Path

import pytest

from shortviz.cli.main import app as command_line
from shortviz.cli.main import parse
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, Removal
from shortviz.records.text import TextSpec, WindowSpec
from shortviz.service.requests import EvaluateRequest, MeasureRequest
from shortviz.service.spelling import to_command, to_python
from shortviz.ui.pages import share
from shortviz.ui.session import state as s

TEXT = TextSpec(kind="paste", value="The mill turns what the river brings. " * 30, limit=1, max_length=32)
SMALL = WindowSpec(window=32, windows=2)
CUT = Removal(block=Block(start=2, n=2))


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A session with small texts, on small windows."""
    monkeypatch.setattr(share.measure, "APP_WINDOWS", SMALL)
    return {s.CALIBRATION: TEXT, s.EVALUATION: TEXT}


def python_of(folder: Path, state: dict[str, object], **view: str) -> str:
    return share.code_of(ModelRef(id=str(folder)), state | view)[1]


def test_the_python_of_a_measurement_runs(tiny_folder: Path, state, capsys: pytest.CaptureFixture[str]) -> None:
    exec(python_of(tiny_folder, state), {})
    assert "Block(start=" in capsys.readouterr().out


def test_the_python_of_an_evaluation_runs(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = EvaluateRequest(model=ModelRef(id=str(tiny_folder)), removal=CUT, text=TEXT, windows=SMALL)
    exec(to_python(request), {})
    assert "removed=(2, 3)" in capsys.readouterr().out


def test_the_python_of_both_maps_runs(tiny_folder: Path, state, capsys: pytest.CaptureFixture[str]) -> None:
    exec(python_of(tiny_folder, state, view="Curve"), {})
    assert "CurveLine(" in capsys.readouterr().out
    exec(python_of(tiny_folder, state, criterion="nll_increase"), {})
    exec(python_of(tiny_folder, state, view="Agreement"), {})
    assert "mean regret, nats" in capsys.readouterr().out


@pytest.mark.parametrize("it", ["measure", "evaluate", "map", "curve"])
def test_a_command_is_one_the_command_line_takes(
    it: str, tiny_folder: Path, tmp_path: Path, state, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ref, spec = ModelRef(id=str(tiny_folder), dtype="float32"), TextSpec(kind="file", value="it's.txt", max_length=32)
    (tmp_path / "it's.txt").write_text(TEXT.value)
    monkeypatch.chdir(tmp_path)
    state |= {s.CALIBRATION: spec, s.EVALUATION: spec}
    line = {
        "measure": share.code_of(ref, state)[0],
        "evaluate": to_command(EvaluateRequest(model=ref, removal=CUT, text=spec, windows=SMALL)),
        "map": share.code_of(ref, state | {s.CRITERION: "nll_increase"})[0],
        "curve": share.code_of(ref, state | {s.VIEW: "Curve"})[0],
    }[it]
    words = shlex.split(line)
    assert words[:2] == ["shortviz", it]
    command_line(words[1:], standalone_mode=False)
    assert capsys.readouterr().out


def test_the_commands_of_an_agreement_run_one_after_another(
    tiny_folder: Path, tmp_path: Path, state, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = TextSpec(kind="file", value="text.txt", max_length=32)
    (tmp_path / "text.txt").write_text(TEXT.value)
    monkeypatch.chdir(tmp_path)
    state |= {s.CALIBRATION: spec, s.EVALUATION: spec, s.VIEW: "Agreement"}
    for line in share.code_of(ModelRef(id=str(tiny_folder)), state)[0].splitlines():
        command_line(shlex.split(line)[1:], standalone_mode=False)
    assert "regret" in capsys.readouterr().out


def test_a_command_with_pasted_text_has_it_whole() -> None:
    request = MeasureRequest(model=ModelRef(id="demo"), text=TEXT)
    assert parse(shlex.split(to_command(request))[1:]) == request
