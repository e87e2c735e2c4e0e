"""Writing files: whole, so that a kill leaves the old one or the new one; or at the end of what is there."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from shortviz.errors import ResourceError


def append(path: Path, data: bytes) -> None:
    """Write at the end of a file; folders are made. Raises ResourceError where the disk will not take it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> ResourceError:
    return ResourceError(f"{path} cannot be written ({error.strerror}); choose another place or free some space.")


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a temporary file of this thread beside `path`, then put it in its place; folders are made.

    Raises ResourceError where the disk will not take it; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                write(file)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(path, error) from error
