"""The folder a checkpoint is written to: checked first, filled beside its final name, renamed when proved. No torch."""

import errno
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from shortviz.errors import ExportError, ResourceError, ShortvizError
from shortviz.model.files import check_disk, sha256
from shortviz.model.gguf.container import is_part
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import size

RECORD = "shortviz.json"
GGUF = ".gguf"
_CHUNK = 4 * 1024 * 1024
_LOCK, _OWNER = "lock", "owner"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_gguf(path: Path) -> bool:
    """Return whether a model that is written there becomes a GGUF file, by the name."""
    return path.suffix.lower() == GGUF


def check_target(folder: Path) -> Path:
    """Return the absolute path of a folder a checkpoint may be written to: absent, or empty; of a GGUF file: absent.

    Raises ExportError where something is there already, or where the folder cannot be replaced or made.
    """
    with _system_errors(folder):
        target = Path(os.path.abspath(folder.expanduser()))
        there = _writable(target.parent)
        with suppress(FileNotFoundError):  # a name that is too long, or no name of a file, is told here
            os.lstat(there / f"{_partial(target)}12345678")
        if is_gguf(target) and (target.exists() or target.is_symlink()):
            raise ExportError(f"{target} is there already, and no file is written over; choose another name.")
        if is_part(target.name):
            raise ExportError(
                f"{target.name} is the name of one file of several, and one is written; choose another name."
            )
        if target.is_dir():
            if any(target.iterdir()):
                raise ExportError(f"The folder {target} is not empty; choose another name, or empty it first.")
            if os.path.ismount(target):
                raise ExportError(f"{target} is a mount point and cannot be replaced; choose a new folder inside it.")
        elif target.exists() or target.is_symlink():
            raise ExportError(f"{target} exists and is not a folder; choose another name.")
        return target


def check_writable(folder: Path) -> None:
    """Raise ExportError where nothing can be written to a folder, or it cannot be made; nothing is tried out."""
    with _system_errors(folder):
        _writable(Path(os.path.abspath(folder.expanduser())))


def _writable(folder: Path) -> Path:
    """Return the nearest folder that is there, which may be written to."""
    there = next(p for p in (folder, *folder.parents) if p.is_symlink() or p.exists())
    if not there.is_dir():
        raise _nothing_written(there, "it is a file" if there.exists() else "it is a link to nothing")
    disk = os.statvfs(there)
    if disk.f_flag & os.ST_RDONLY:
        raise _nothing_written(there, os.strerror(errno.EROFS))
    if not disk.f_blocks and there.parts[1:2] in (("proc",), ("sys",)):  # root may write there, and nothing is taken
        raise _nothing_written(there, "it is not on a disk")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _nothing_written(there, "it may not be written to")
    return there


def _nothing_written(folder: Path, reason: object) -> ExportError:
    return ExportError(f"Nothing can be written to {folder} ({reason}); choose a folder you may write to.")


@contextmanager
def _system_errors(folder: Path) -> Iterator[None]:
    """Raise ExportError for what the system says of a path: a name too long, a folder that may not be looked into."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # pathlib's of a home that is not known is a RuntimeError
        raise _nothing_written(folder, getattr(error, "strerror", "") or str(error).rstrip(".")) from error


def _partial(target: Path) -> str:
    """Return how the name of the folder begins that is filled before it gets its final name."""
    return f".{target.name}.partial-"


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise ResourceError where the disk of a folder (or of its nearest parent) has fewer bytes free than needed."""
    check_disk(folder, needed_bytes, "The checkpoint", "choose a folder on another disk")


@contextmanager
def filled_beside(target: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Give a new temporary folder beside `target`; whatever happens, nothing of it stays.

    What is to stay is moved out of it (`move_into_place`). Parents that had to be made go again when nothing came of
    it. A lock in it tells others that its process lives; what a killed one left here is removed first. Raises
    ExportError where the place cannot be written to, ResourceError where its disk has fewer bytes free than needed.
    """
    remove_leftovers(target.parent)
    check_space(target, needed_bytes)
    made = [parent for parent in target.parents if not parent.exists()]
    room: Path | None = None
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            room = Path(tempfile.mkdtemp(prefix=_partial(target), dir=target.parent))
        except OSError as error:
            raise _nothing_written(target.parent, error.strerror) from error
        with _owned(room):
            yield room
    finally:
        if room is not None:
            shutil.rmtree(room, ignore_errors=True)
        for parent in made:  # nearest first; a parent that holds the checkpoint is not empty and stays
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def _owned(room: Path) -> Iterator[None]:
    """Hold the lock of a room: the system lets go of it when the process ends, however it ends."""
    lock = FileLock(room / _LOCK)
    try:
        lock.acquire()
        (room / _OWNER).write_text(f"{os.getpid()}\n", encoding="utf-8")  # only now may others judge by the lock
    except (OSError, NotImplementedError):  # a full disk, or one without locks: nobody will take this for a leftover
        lock.release()
    try:
        yield
    finally:
        lock.release()


def remove_leftovers(parent: Path) -> None:
    """Remove the temporary folders of exports that were killed; those of living processes, and all else, stay."""
    for room in parent.glob(".*.partial-*"):
        if room.is_symlink() or not (room / _OWNER).is_file():
            continue
        lock = FileLock(room / _LOCK, timeout=0)
        try:
            lock.acquire()
        except (Timeout, OSError, NotImplementedError):
            continue
        lock.release()
        shutil.rmtree(room, ignore_errors=True)


def move_into_place(folder: Path, target: Path) -> None:
    """Give a finished folder its final name in one step; raises ExportError where something came there meanwhile."""
    target = target.resolve()
    try:
        if target.is_dir():
            target.rmdir()
        os.replace(folder, target)
    except OSError as error:
        raise ExportError(
            f"The finished checkpoint could not be named {target} ({error.strerror}); choose another name."
        ) from error


def write_error(error: Exception, target: Path, needed_bytes: int) -> ShortvizError:
    """Return what a failed write means for a person: a full disk, or a place that cannot be written."""
    found = re.search(r"os error (\d+)", str(error))  # the way safetensors words it
    number = error.errno if isinstance(error, OSError) else int(found.group(1)) if found else None
    reason = os.strerror(number) if number is not None else str(error)
    if number in _FULL:
        return ResourceError(
            f"The disk of {target.parent} is full ({reason}): the checkpoint needs {size(needed_bytes)}; "
            "nothing was left behind, so free some space and export again."
        )
    return ExportError(f"The checkpoint could not be written to {target.parent} ({reason}); nothing was left behind.")


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; somebody may be writing, renaming and removing them meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def fingerprints(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by its name relative to the folder, sorted.

    Files in `known` are not read again.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {name: (known or {}).get(name) or sha256(folder / name) for name in names}


def zip_checkpoint(folder: Path, target: Path, *, watch: Watch = NO_WATCH) -> Path:
    """Return `target`, a zip file of an exported folder: streamed, and stored, for weights do not compress.

    The files lie in a folder of the checkpoint's name. Raises ExportError where `target` exists or cannot be written,
    ResourceError where the disk is full, Stopped when asked to stop; then no file is left.
    """
    target = Path(os.path.abspath(target))
    if target.exists():
        raise ExportError(f"{target} exists; choose another name.")
    total = folder_bytes(folder)
    with filled_beside(target, total) as room:
        try:
            _write_zip(folder, room / target.name, total, watch)
            os.replace(room / target.name, target)
        except OSError as error:
            raise write_error(error, target, total) from error
    return target


def _write_zip(folder: Path, archive: Path, total: int, watch: Watch) -> None:
    done = 0
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            member = zipfile.ZipInfo.from_file(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
            with path.open("rb") as source, packed.open(member, "w") as sink:
                while chunk := source.read(_CHUNK):
                    watch.check("The zip file was stopped; nothing was left behind.")
                    sink.write(chunk)
                    done += len(chunk)
                    watch.tell("zip", done=done, total=total, unit="bytes", detail=path.name)
