"""Imports point one way: a fresh interpreter imports the core and reports what came along."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "shortviz").rglob("*.py")
    if "ui" not in path.relative_to(ROOT).parts and path.name != "__main__.py"
)
WITHOUT_TORCH = ["shortviz"] + [
    f"shortviz.{name}"
    for name in (
        "records",
        "progress",
        "errors",
        "settings",
        "planning",
        "runs",
        "charts",
        "jobs",
        "texts",
        "criteria",
        "heal_settings",
    )
]


def run(statements: list[str]) -> str:
    """Return what a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", "\n".join(statements)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(modules: list[str], *heavy: str) -> set[str]:
    """Return which of the heavy packages a fresh interpreter has loaded after importing the modules, and only that."""
    report = f"import sys\nprint(*(name for name in {heavy!r} if name in sys.modules))"
    return set(run([*(f"import {module}" for module in modules), report]).split())


def test_core_never_imports_streamlit_and_importing_it_prints_nothing() -> None:
    assert loaded_after(CORE, "streamlit") == set()


def test_a_saved_run_is_explored_without_torch() -> None:
    assert loaded_after(WITHOUT_TORCH, "torch", "transformers", "streamlit") == set()


@pytest.mark.parametrize(("module", "brings"), [("streamlit", "streamlit"), ("shortviz.pruning", "torch")])
def test_the_tests_of_layers_can_fail(module: str, brings: str) -> None:
    assert brings in loaded_after([module], "streamlit", "torch", "transformers")


def test_pandas_is_whole_before_a_page_draws() -> None:
    """A figure that is drawn while another thread is in the middle of importing pandas is an exception on the page."""
    assert loaded_after(["shortviz.ui.frame"], "pandas", "torch") == {"pandas"}
