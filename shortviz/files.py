"""Writing files: whole, so that a kill leaves the old one or the new one; or at the end of what is there."""

import os
import platform
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray

from shortviz.errors import ResourceError

T = TypeVar("T", np.float32, np.float64)


def append(path: Path, data: bytes) -> None:
    """Write at the end of a file; folders are made. Raises ResourceError where the disk will not take it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        raise _refused(path, error) from error


def read_back(path: Path | None, kind: type[T], count: int) -> NDArray[T] | None:
    """Return the first `count` numbers of a raw file and drop what stands after them; None where it has fewer."""
    size = count * np.dtype(kind).itemsize
    if path is None or not path.exists() or path.stat().st_size < size:
        return None
    with path.open("r+b") as file:
        file.truncate(size)
    return np.fromfile(path, dtype=kind)


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


# How much memory is free on this machine, inside the limit of a container. No torch.

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Return the bytes of memory that are free now, within this container's limit."""
    return min(int(psutil.virtual_memory().available), _free_in_container())


def _free_in_container() -> int:
    """Return what the control group (version 2) still allows, or a huge number where there is no limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 1 << 62
    if not limit.isdecimal():
        return 1 << 62
    # The page cache of files counts as used, but is given back when memory is short.
    return max(int(limit) - used + int(stat.get("inactive_file", 0)), 0)


def versions() -> dict[str, str]:
    """Return the versions that the numbers depend on."""
    packages = ("shortviz", "torch", "transformers", "numpy")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}
