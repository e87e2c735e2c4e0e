"""The folder of run directories: which there are, renaming, putting one aside and bringing it back. No torch."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path

from shortviz.errors import RunError
from shortviz.records.formatting import layers_text
from shortviz.records.json import to_json
from shortviz.records.run import Run
from shortviz.runs.run import FILE

ASIDE = ".removed"
"""Folder beside the runs where removed ones wait."""
KEPT_DAYS = 7
"""How long a removed run can still be brought back."""
MOST_CHARACTERS = 120
"""Of a run's name, or of one of its tags."""
MOST_OF_A_NOTE = 4_000
"""Characters."""


def folders(library: Path) -> list[Path]:
    """Return the run directories, newest first."""
    found = [file for file in library.glob(f"*/{FILE}") if not file.parent.name.startswith(".")]
    return [file.parent for file in sorted(found, key=lambda file: file.stat().st_mtime, reverse=True)]


def title(run: Run) -> str:
    """Return what a person knows a run by: its name, else model, text and date."""
    if run.name:
        return run.name
    when = f" · {datetime.fromisoformat(run.created):%d %b %Y}" if run.created else ""
    return f"{run.model.id} · {run.text.source}{when}"


def described(run: Run, *, name: str, tags: str = "", note: str = "") -> Run:
    """Return the run with a name, tags (separated by commas) and a note; an empty name is that of model, text, date.

    Raises RunError where one of them is too long.
    """
    name, found = (
        " ".join(name.split()),
        tuple(dict.fromkeys(" ".join(t.split()) for t in tags.split(",") if t.strip())),
    )
    for what, text, most in (
        ("name", name, MOST_CHARACTERS),
        ("tag", max(found, key=len, default=""), MOST_CHARACTERS),
    ):
        if len(text) > most:
            raise RunError(f"A {what} has at most {most} characters, this one has {len(text)}; shorten it.")
    return replace(run, name="" if name == title(replace(run, name="")) else name, tags=found, note=_note(note))


def with_cell_note(run: Run, layers: Sequence[int], note: str) -> Run:
    """Return the run with this note on a cut, in place of the one before; an empty note goes.

    Raises RunError where it is too long.
    """
    notes = {cut: text for cut, text in run.cell_notes.items() if cut != layers_text(layers)}
    return replace(run, cell_notes=notes | ({layers_text(layers): note} if (note := _note(note)) else {}))


def _note(note: str) -> str:
    if len(note) > MOST_OF_A_NOTE:
        raise RunError(f"A note has at most {MOST_OF_A_NOTE:,} characters, this one has {len(note):,}; shorten it.")
    return note.strip()


def same_measurement(one: Run, other: Run) -> bool:
    """Return whether two runs hold the same, whatever they are called and what was noted."""
    if (one.created, one.text.fingerprint, one.model.id) != (other.created, other.text.fingerprint, other.model.id):
        return False
    bare = [to_json(replace(run, name="", note="", tags=(), cell_notes={})) for run in (one, other)]
    return bare[0] == bare[1]


def free_key(library: Path, wanted: str) -> str:
    """Return the wanted name of a run directory, or the first numbered one that is free."""
    names = (wanted if i == 1 else f"{wanted}-{i}" for i in count(1))
    return next(name for name in names if not (library / name).exists())


def set_aside(folder: Path) -> str:
    """Move a run directory out of the library and return the token that brings it back; older ones are deleted.

    Raises RunError where there is no such run.
    """
    library = folder.parent
    if not (folder / FILE).is_file():
        raise RunError(f"There is no run {folder.name!r} any more; nothing was removed.")
    aside = library / ASIDE
    aside.mkdir(exist_ok=True)
    for old in aside.iterdir():
        if time.time() - old.stat().st_mtime > KEPT_DAYS * 86_400:
            shutil.rmtree(old, ignore_errors=True)
    token = free_key(aside, folder.name)
    folder.rename(aside / token)
    (aside / token).touch()  # its days count from now
    return token


def bring_back(library: Path, token: str) -> str:
    """Move a run that was set aside back, and return its name; a numbered one where its own is taken.

    Raises RunError where it is not there any more.
    """
    aside = library / ASIDE / token
    if Path(token).name != token or not (aside / FILE).is_file():
        raise RunError(f"The run {token!r} is not kept any more; it cannot be brought back.")
    key = free_key(library, token)
    aside.rename(library / key)
    return key
