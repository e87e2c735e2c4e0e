"""The lines that the app offers do what they say: the Python runs, the command is one that the command line takes."""

import shlex
from pathlib import Path

import pytest

from shortviz.cli.main import app as command_line
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block
from shortviz.records.text import TextSpec, WindowSpec
from shortviz.ui.pages import share

TEXT = TextSpec(kind="paste", value="The mill turns what the river brings. " * 30, limit=1, max_length=32)
WINDOWS = WindowSpec(window=32, windows=2)
BLOCK = Block(start=2, n=2)


def test_the_python_of_a_measurement_runs(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(share.measure_python(ModelRef(id=str(tiny_folder)), TEXT), {})
    assert "Block(start=" in capsys.readouterr().out


def test_the_python_of_an_evaluation_runs(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(share.evaluate_python(ModelRef(id=str(tiny_folder)), BLOCK, TEXT, WINDOWS), {})
    assert "removed=(2, 3)" in capsys.readouterr().out


def test_the_python_of_both_maps_runs(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ref = ModelRef(id=str(tiny_folder))
    exec(share.losses_python(ref, TEXT, WINDOWS), {})
    assert "CurveLine(" in capsys.readouterr().out
    exec(share.agreement_python(ref, TEXT, TEXT, WINDOWS), {})
    assert "mean regret, nats" in capsys.readouterr().out


@pytest.mark.parametrize("it", ["measure", "evaluate", "map", "curve"])
def test_a_command_is_one_the_command_line_takes(
    it: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ref, spec = ModelRef(id=str(tiny_folder), dtype="float32"), TextSpec(kind="file", value="it's.txt", max_length=32)
    (tmp_path / "it's.txt").write_text(TEXT.value)
    monkeypatch.chdir(tmp_path)
    line = {
        "measure": share.measure_command(ref, spec),
        "evaluate": share.evaluate_command(ref, BLOCK, spec, WINDOWS),
        "map": share.losses_command(ref, spec, WINDOWS),
        "curve": share.curve_command(ref, spec, WINDOWS),
    }[it]
    words = shlex.split(line)
    assert words[:2] == ["shortviz", it]
    command_line(words[1:], standalone_mode=False)
    assert capsys.readouterr().out


def test_the_commands_of_an_agreement_run_one_after_another(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = TextSpec(kind="file", value="text.txt", max_length=32)
    (tmp_path / "text.txt").write_text(TEXT.value)
    monkeypatch.chdir(tmp_path)
    for line in share.agreement_command(ModelRef(id=str(tiny_folder)), spec, spec, WINDOWS).splitlines():
        command_line(shlex.split(line)[1:], standalone_mode=False)
    assert "regret" in capsys.readouterr().out


def test_a_command_with_pasted_text_says_to_save_it_first() -> None:
    assert share.measure_command(ModelRef(id="demo"), TEXT).startswith("# save the pasted text as pasted.txt first")
