"""Fixtures of the unit tests: a tiny checkpoint, a way to run a command line in this process, a small disk."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command import Outcome

Unfinished = Callable[[], list[Path]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny model of six layers and its tokenizer."""
    from tests.support.families import build_tiny, tiny_tokenizer

    folder = tmp_path_factory.mktemp("tiny-llama")
    build_tiny("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def shortviz(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Outcome]]:
    """Runs a command line in this process; gives back (exit code, stdout, stderr)."""
    from shortviz.cli.main import app
    from shortviz.cli.session import run_command

    before = dict(os.environ)

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = run_command(app, arguments)
        out, err = capsys.readouterr()
        return code, out, err

    yield run
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def unfinished(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unfinished]:
    """Lists the files of work that is not done, in a place where no other test keeps any."""
    from shortviz.settings import settings

    folder = tmp_path_factory.mktemp("runs")
    monkeypatch.setenv("SHORTVIZ_RUNS_DIR", str(folder))
    settings.cache_clear()
    yield lambda: sorted((folder / "unfinished").glob("*.safetensors"))
    monkeypatch.undo()
    settings.cache_clear()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a disk of its own of a given size; skips where mounting is not allowed."""
    mounted = []

    def mount(size: int, options: str = "rw") -> Path:
        place = tmp_path / "disk"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},{options}", "tmpfs", str(place)]
        if subprocess.run(command, check=False, capture_output=True).returncode != 0:
            pytest.skip("mounting needs root; the file size limit test covers a failing write")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)
