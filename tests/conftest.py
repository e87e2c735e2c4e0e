"""Shared fixtures. The repository root is on sys.path, for `from tests.support... import`."""

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Before anything reads the settings. The cache stays the user's: de-quantising the demo model takes half a minute.
os.environ["SHORTVIZ_RUNS_DIR"] = tempfile.mkdtemp(prefix="shortviz-test-runs-")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator  # noqa: E402  (imports follow the environment they read)
from typing import TYPE_CHECKING  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

if TYPE_CHECKING:
    from shortviz.model.handle import ModelHandle

# A deadline per example fails on a busy machine, not on a bug.
hypothesis.settings.register_profile("shortviz", deadline=None)
hypothesis.settings.load_profile("shortviz")


@pytest.fixture(scope="session", autouse=True)
def _runs_dir_removed() -> Iterator[None]:
    """Remove the session's run directory at the end."""
    import shutil

    yield
    shutil.rmtree(os.environ["SHORTVIZ_RUNS_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def demo_handle() -> "ModelHandle":
    """The real demo model, loaded once for the session; read-only."""
    from shortviz.model.load import load
    from shortviz.records.model import ModelRef

    return load(ModelRef(id="demo"))
