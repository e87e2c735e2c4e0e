"""What a fresh interpreter has loaded: import contracts (make lint) see no import that is made inside a library."""

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

WITHOUT_TORCH = (
    "shortviz",
    "shortviz.records.run",
    "shortviz.analysis.planning",
    "shortviz.runs.run",
    "shortviz.figures.map",
    "shortviz.service.queue",
    "shortviz.text.tokens",
    "shortviz.criteria",
    "shortviz.cli.main",
    "shortviz.progress",
)


def loaded_after(modules: tuple[str, ...], *heavy: str) -> set[str]:
    """Return which of the heavy packages a fresh interpreter has loaded after importing the modules, and only that."""
    report = f"import sys\nprint(*(name for name in {heavy!r} if name in sys.modules))"
    code = "\n".join([*(f"import {module}" for module in modules), report])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_saved_run_is_explored_without_torch() -> None:
    assert loaded_after(WITHOUT_TORCH, "torch", "transformers", "streamlit") == set()


@pytest.mark.parametrize(("module", "brings"), [("streamlit", "streamlit"), ("shortviz.model.prune", "torch")])
def test_the_test_of_imports_can_fail(module: str, brings: str) -> None:
    assert brings in loaded_after((module,), "streamlit", "torch", "transformers")


def test_pandas_is_whole_before_a_page_draws() -> None:
    """A figure that is drawn while another thread is in the middle of importing pandas is an exception on the page."""
    assert loaded_after(("shortviz.ui.pages.shell",), "pandas", "torch") == {"pandas"}


def test_heal_is_a_function_and_a_room_whichever_is_asked_for_first() -> None:
    for first in ("from shortviz import heal", "import shortviz.heal.adapter"):
        code = f"{first}\nimport shortviz\nfrom shortviz import heal\nassert callable(heal) and callable(shortviz.heal)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_no_page_of_a_saved_run_imports_torch() -> None:
    """A background thread imports the engine meanwhile: a page that does too may see half of transformers."""
    code = """
import sys
from tests.support.app import App
for name in ("learn", "map", "heal", "export", "runs"):  # the Model page starts a job, and jobs import in turn
    page = App(name)
    assert page.errors == [], page.errors
    print(name, *({"torch", "transformers"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = done.stdout.splitlines()
    assert len(pages) == 5
    assert [page for page in pages if " " in page] == []
