"""A run directory while a command works on it: there before the long work starts, gone where that is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shortviz.errors import ShortvizError, Stopped

if TYPE_CHECKING:
    from shortviz.records import Run


@contextmanager
def begun(run: "Run", out: Path) -> Iterator[None]:
    """Save a run that is to be measured; where its text, criterion or numbers are refused, leave nothing new behind.

    Raises RunError where the folder holds something else, ResourceError where it cannot be written.
    """
    from shortviz import runs

    new_folder, new_run = not out.exists(), not (out / runs.FILE).exists()
    runs.save_run(run, out)
    try:
        yield
    except Stopped:
        raise
    except ShortvizError:
        # Whatever was measured before the refusal stands in files beside the run, and then it stays.
        if new_run and [entry.name for entry in out.iterdir()] == [runs.FILE]:
            (out / runs.FILE).unlink()
            if new_folder:
                out.rmdir()
        raise


@contextmanager
def claimed(run: "Run", out: Path) -> Iterator["Run"]:
    """Yield the run without distances, saved, with all that the folder's run has but those; `begun` says the rest."""
    from shortviz import runs

    old = runs.load_run(out) if (out / runs.FILE).exists() else run
    facts = {"model": run.model, "text": run.text, "versions": run.versions, "created": run.created}
    mine = replace(old, **facts, distances=None)  # type: ignore[arg-type]
    with begun(replace(mine, distances=old.distances), out):
        yield mine
