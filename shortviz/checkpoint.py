"""Checkpoints of a long measurement: one .npz beside the run, replaced atomically, tied to what is being measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from shortviz.atomic import write_atomically
from shortviz.errors import RunError
from shortviz.records import Floats


def save_checkpoint(path: Path, key: str, arrays: Mapping[str, Floats]) -> None:
    """Write the arrays under `key`; a kill at any moment leaves the old file or the new one.

    Raises ResourceError where the disk will not take it.
    """
    named: dict[str, Any] = dict(arrays) | {"__key__": np.array(key)}
    write_atomically(path, lambda file: np.savez(file, **named))


def load_checkpoint(path: Path, key: str) -> dict[str, Floats] | None:
    """Return the arrays saved under `key`, or None where there is no checkpoint.

    Raises RunError where the file belongs to another measurement or cannot be read.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise RunError(f"The checkpoint {path} cannot be read ({error}); delete it to start again.") from error
    found = str(arrays.pop("__key__", ""))
    if found != key:
        raise RunError(
            f"The checkpoint {path} belongs to another measurement (model, text or settings differ); "
            "delete it to start again, or choose another --out."
        )
    return arrays
