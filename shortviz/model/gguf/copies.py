"""De-quantised copies of GGUF files, kept as safetensors in the user's cache: made once, atomically, by one process."""

import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout

from shortviz.errors import ModelError, ResourceError
from shortviz.files import free_bytes
from shortviz.model.files import INDEX, WEIGHTS, check_disk, sha256
from shortviz.model.gguf.blocks import check_blocks, marked_blocks
from shortviz.model.gguf.container import Gguf, parts_of, read_gguf, write_gguf
from shortviz.model.headers import safetensors_parameters
from shortviz.progress import Watch
from shortviz.records.formatting import size
from shortviz.settings import settings

_FORMAT = 4
"""Raise it where the copies are written differently: older ones are then made anew."""
_STEPS = ("reading the tokenizer", "de-quantising the weights", "writing the copy")
_NO_DISK = ("No space left", "Disk quota exceeded", "File too large", "os error 28", "os error 27")
_NO_MEMORY = ("MemoryError", "not enough memory", "Cannot allocate memory")
_ERROR_LINE = re.compile(r"[A-Za-z_.]+(Error|Exception): ")
"""Begins the message of a traceback, which can be many lines long."""
_POLL_SECONDS = 0.1
_STOPPED = "De-quantising was stopped; nothing was left behind."
_PROGRAM_BYTES = 450_000_000
"""Of memory, for Python with torch and transformers."""


def copy_folder(gguf: Path) -> Path:
    """Return where the copy of this GGUF file is kept, whether it is there yet or not; it depends on content alone."""
    digests = []
    for file in parts_of(gguf):
        facts = file.stat()
        digests.append(_digest(file.absolute(), facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return _copies() / f"{_stem(gguf)}-{digest[:20]}-{_FORMAT}"


def whole_copy(gguf: Path) -> Path | None:
    """Return the folder of the file's complete copy, or None; a file that cannot have one is not read for that."""
    if not any(_copies().glob(f"{glob.escape(_stem(gguf))}-*-{_FORMAT}")):
        return None
    folder = copy_folder(gguf)
    return folder if is_whole(folder) else None


def read_model(gguf: Path) -> Gguf:
    """Return what a GGUF file holds, checked; raises ModelError where it is not whole, or no model of two layers."""
    found = check_blocks(read_gguf(gguf))
    if found.num_layers < 2:
        raise ModelError(f"{gguf} has {found.num_layers} layer; choose a model of at least 2.")
    return found


def _copies() -> Path:
    return settings().cache_dir.absolute() / "gguf"


def _stem(gguf: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", gguf.stem)[:60].lstrip(".")


def memory_needed(header: Gguf) -> int:
    """Return the bytes of memory that the process takes which de-quantises a file.

    It holds every weight in float32, whatever dtype the model is loaded in afterwards, a tensor twice while it is
    converted, and torch and transformers. Measured peaks, without the pages of the file itself, which the system can
    take back: 1.10 GB where this says 1.21 (135 M parameters), 1.94 where it says 2.03 (379 M).
    """
    return 4 * (header.parameters + 2 * header.largest) + _PROGRAM_BYTES


def check_memory(gguf: Path, header: Gguf) -> None:
    """Raise ResourceError where the process that de-quantises the file would not have the memory it needs."""
    needed, free = memory_needed(header), free_bytes()
    if needed > free:
        raise ResourceError(
            f"De-quantising {gguf.name}, which is done once and in float32, needs {size(needed)} of memory, and "
            f"{size(free)} is free; close something, or give a safetensors checkpoint of the model."
        )


@lru_cache(maxsize=64)
def _digest(gguf: Path, *_facts: int) -> str:
    """Return the SHA-256 of a file, read once while it stays as it is: `_facts` change with it."""
    return sha256(gguf)


def is_whole(folder: Path) -> bool:
    """Return whether a complete copy is in the folder."""
    weights = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else sorted(folder.glob("model-*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        return False
    try:
        for path in weights:
            safetensors_parameters(path)
    except ModelError:
        return False
    return len(weights) == 1 or (folder / INDEX).is_file()


def make_copy(gguf: Path, folder: Path, header: Gguf, watch: Watch) -> Path:
    """De-quantise the GGUF file into the folder and return it; where another process is at it, wait for that one.

    Raises:
        ModelError: Where transformers cannot read the file.
        ResourceError: Where the disk or the memory is too small, or the cache folder cannot be written to.
        Stopped: Where `watch.stop` was set; nothing is left behind.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    lock = FileLock(f"{folder}.lock", timeout=_POLL_SECONDS)
    while not lock.is_locked:
        watch.check(_STOPPED)
        try:
            lock.acquire()
        except Timeout:
            _report(watch, 0, "waiting for another process that de-quantises the same file")
        except OSError as error:
            raise _unwritable(folder, error) from error
    try:
        if not is_whole(folder):
            for left in folder.parent.glob(f"{folder.name}.partial-*"):  # by a killed process: the lock is ours
                shutil.rmtree(left, ignore_errors=True)
            joined = header.num_bytes if len(header.files) > 1 else 0
            check_disk(folder.parent, header.parameters * 4 + joined + 50_000_000, "The de-quantised copy")
            _fill(header, folder, watch)
    finally:
        lock.release()
    return folder


def _fill(header: Gguf, folder: Path, watch: Watch) -> None:
    """De-quantise into a temporary folder and rename that."""
    try:
        with tempfile.TemporaryDirectory(
            prefix=f"{folder.name}.partial-", dir=folder.parent, ignore_cleanup_errors=True
        ) as name:
            room = Path(name)
            checkpoint = room / "checkpoint"
            dequantise_into(header, checkpoint, room, watch)
            shutil.rmtree(folder, ignore_errors=True)  # a broken copy, or nothing
            os.replace(checkpoint, folder)
    except OSError as error:
        raise _unwritable(folder, error) from error


def dequantise_into(header: Gguf, checkpoint: Path, room: Path, watch: Watch, *, dtype: str = "float32") -> None:
    """Write a GGUF file, or all its parts, as a new checkpoint folder; what is needed meanwhile lies in `room`.

    `dtype` is what the folder is loaded in where nothing else is asked for; its weights are float32. Raises what
    `make_copy` raises, and OSError.
    """
    checkpoint.mkdir()
    gguf = header.path
    if len(header.files) > 1:  # transformers reads one file
        gguf = room / "joined.gguf"
        _report(watch, 0, "joining the parts")
        write_gguf(gguf, header, header.keys, header.tensors, Watch(None, watch.stop))
    _run(gguf, checkpoint, room, watch)
    if gguf != header.path:
        gguf.unlink()
    path = checkpoint / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": dtype}
    sliding = marked_blocks(header)
    if sliding is not None and config.get("sliding_window") and "layer_types" in config:
        # transformers 5.23 does not read which windows slide, and takes each family's own rhythm.
        config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in sliding]
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _run(gguf: Path, into: Path, room: Path, watch: Watch) -> None:
    script = Path(__file__).with_name("dequantise.py")
    said, errors = room / "said.txt", room / "errors.txt"
    with said.open("wb") as out, errors.open("wb") as err:
        # -P: the folder of the script, which is this package, must not become importable piece by piece.
        child = subprocess.Popen(
            [sys.executable, "-P", str(script), str(gguf), str(into)], stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        try:
            while child.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=_POLL_SECONDS)
                watch.check(_STOPPED)
                step = len(said.read_text().split()) - 1
                _report(watch, max(step, 0), _STEPS[step] if step >= 0 else "starting")
        finally:
            child.kill()
            child.wait()
    if child.returncode != 0:
        raise _failure(gguf, into, child.returncode, errors.read_text(errors="replace"))


def _failure(gguf: Path, folder: Path, code: int, errors: str) -> ModelError | ResourceError:
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or [f"exit code {code}"]
    named = [line for line in lines if _ERROR_LINE.match(line)]
    last = (named or lines)[-1][:300].rstrip(".")
    if any(sign in errors for sign in _NO_DISK):
        return ResourceError(
            f"The disk of {folder.parent.parent} is full: {gguf.name} was not de-quantised; free some."
        )
    if code < 0 or any(sign in last for sign in _NO_MEMORY):
        return ResourceError(f"There was not enough memory to de-quantise {gguf.name}; close something, or load less.")
    return ModelError(f"The GGUF file {gguf} cannot be de-quantised ({last}); choose another file.")


def _unwritable(folder: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"The cache folder {folder.parent} cannot be written to ({error.strerror}); "
        "set SHORTVIZ_CACHE_DIR to another folder."
    )


def _report(watch: Watch, step: int, detail: str) -> None:
    watch.tell("de-quantise", done=step, total=len(_STEPS), unit="steps", detail=detail)
