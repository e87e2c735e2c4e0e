"""The folder of run directories: which there are, renaming, putting one aside and bringing it back. No torch."""

import shutil
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

from shortviz.errors import RunError
from shortviz.records.run import Run
from shortviz.runs.run import FILE

ASIDE = ".removed"
"""Folder beside the runs where removed ones wait."""
KEPT_DAYS = 7
"""How long a removed run can still be brought back."""
MOST_CHARACTERS = 120
"""Of a run's name."""


def folders(library: Path) -> list[Path]:
    """Return the run directories, newest first."""
    found = [file for file in library.glob(f"*/{FILE}") if not file.parent.name.startswith(".")]
    return [file.parent for file in sorted(found, key=lambda file: file.stat().st_mtime, reverse=True)]


def renamed(run: Run, name: str) -> Run:
    """Return the run under another name; raises RunError where the name is empty or too long."""
    name = " ".join(name.split())
    if not name or len(name) > MOST_CHARACTERS:
        raise RunError(f"A name has 1 to {MOST_CHARACTERS} characters, this one has {len(name)}; choose another.")
    return replace(run, name=name)


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
