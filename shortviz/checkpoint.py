"""Checkpoints of a long measurement: one .npz beside the run, replaced atomically, tied to what is being measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from shortviz.atomic import write_atomically
from shortviz.errors import RunError
from shortviz.records import Floats

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle
    from shortviz.streamed_model import StreamedModel


def model_facts(handle: "ModelHandle | StreamedModel") -> list[object]:
    """Return what tells one model from another, for the key of a checkpoint: weights retrained in place included."""
    info, removed = handle.info, handle.plan.removed if handle.plan else ()
    place = Path(handle.ref.id)
    weights = sorted(place.glob("*.safetensors")) if place.is_dir() else [place] if place.is_file() else []
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights]
    return [info.id, info.revision, info.dtype, info.device, info.parameters, removed, stamps]


def save_checkpoint(path: Path, key: str, arrays: Mapping[str, Floats]) -> None:
    """Write the arrays under `key`; a kill at any moment leaves the old file or the new one.

    Raises ResourceError where the disk will not take it.
    """
    named: dict[str, Any] = dict(arrays) | {"__key__": np.array(key)}
    write_atomically(path, lambda file: np.savez(file, **named))


def discard_checkpoint(path: Path) -> None:
    """Remove a checkpoint and what lies beside it under the same name: the measurement is complete."""
    for file in path.parent.glob(f"{path.stem}.*"):
        file.unlink(missing_ok=True)


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
