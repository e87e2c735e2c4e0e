"""Writing a file so that a kill at any moment leaves the old one or the new one, never a piece."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from shortviz.errors import ResourceError


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
        raise ResourceError(
            f"{path} cannot be written ({error.strerror}); choose another place or free some space."
        ) from error
