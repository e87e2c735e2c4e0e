"""Fixtures of the command-line tests: a tiny checkpoint, and a way to run a command line in this process."""

import os
from collections.abc import Callable, Iterator

import pytest

Outcome = tuple[int, str, str]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny model of six layers and its tokenizer."""
    from tests.families import build_tiny, tiny_tokenizer

    folder = tmp_path_factory.mktemp("tiny-llama")
    build_tiny("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def shortviz(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Outcome]]:
    """Runs a command line in this process; gives back (exit code, stdout, stderr)."""
    from shortviz.cli import app
    from shortviz.cli_session import run_command

    before = dict(os.environ)

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = run_command(app, arguments)
        out, err = capsys.readouterr()
        return code, out, err

    yield run
    os.environ.clear()
    os.environ.update(before)
