"""Where `repair`, `shrink` and `heal` work: what may fail at the end is checked first, and loses nothing if it does.

What was computed lies in the run directory until it is written where it was wanted. Without --out there is one for the
time of the work beside the export's or the adapter's folder; it goes away when that is written and proved.
"""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shortviz.errors import RunError, ShortvizError

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle


def check_folders(**given: Path | None) -> None:
    """Raise ShortvizError where two options name one folder, ExportError where one cannot be written or is taken.

    `out` is a run directory, which may be there already.
    """
    from shortviz.checkpoint_folder import check_target, check_writable

    named = {name: folder.resolve() for name, folder in given.items() if folder is not None}
    folders = list(named.values())
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        names = [f"--{name}" for name in given]
        raise ShortvizError(f"{twice} was given twice; give {', '.join(names[:-1])} and {names[-1]} a folder each.")
    for name, folder in given.items():
        if folder is not None:
            check_writable(folder)
            if name != "out":
                check_target(folder)


def check_room(export: Path | None, model: "ModelHandle", *, fewer_bytes: int = 0) -> None:
    """Raise ResourceError where the disk has no room for an export: told before work that it would lose.

    `model` is the cut one, for what comes after the cut leaves the size as it is; or one that is still to become
    smaller by so many bytes.
    """
    if export is None:
        return
    from shortviz.checkpoint_folder import check_space
    from shortviz.export import needed_bytes

    check_space(export.resolve(), needed_bytes(model) - fewer_bytes)


def check_run(out: Path | None, model: str) -> None:
    """Raise RunError where a folder holds a run of another model."""
    from shortviz import runs

    if out is not None and (out / runs.FILE).is_file() and (found := runs.load_run(out).model.id) != model:
        raise RunError(f"{out} holds a run of {found}, not of {model}; choose another --out.")


def work_folder(out: Path | None, *written: Path | None) -> Path | None:
    """Return the run directory to work in: the one that was given, or one beside the first folder to be written."""
    target = next((folder for folder in written if folder is not None), None)
    if out is not None or target is None:
        return out
    target = Path(os.path.abspath(target.expanduser()))
    return target.with_name(f"{target.name}-work")


@contextmanager
def kept_in(work: Path | None, out: Path | None) -> Iterator[None]:
    """Write what was made: where that fails, say where all that was computed for it is kept, and how to go on."""
    if work is None:
        yield
        return
    advice = f"What was computed is kept in {work}: run the same command again to go on from there"
    elsewhere = "" if out is not None else f" (with --out {shlex.quote(str(work))} where you name another folder)"
    try:
        yield
    except ShortvizError as error:
        error.args = (f"{error} {advice}{elsewhere}.",)
        raise
    except BaseException:
        print(f"{advice}{elsewhere}.", file=sys.stderr)
        raise


def clear_work(work: Path | None, out: Path | None, checkpoint: str) -> None:
    """Remove what a finished command does not need to go on from; of the run directory nothing else."""
    if work is None:
        return
    from shortviz import runs

    (work / checkpoint).unlink(missing_ok=True)
    if out is None:
        (work / runs.FILE).unlink(missing_ok=True)
        with suppress(OSError):  # it holds something of somebody else's, and stays
            work.rmdir()
