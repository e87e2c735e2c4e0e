"""The tensors of a checkpoint folder, file by file: what is where, checked before anything is read. No torch."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shortviz.errors import ModelError
from shortviz.model_files import INDEX, WEIGHTS, ModelFiles, read_json, weight_names
from shortviz.weight_files import safetensors_header

_SAMPLES = 64
_PIECE = 4 * 1024 * 1024
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One tensor of a safetensors file."""

    file: Path
    dtype: str
    """As safetensors writes it, e.g. `BF16`."""
    shape: tuple[int, ...]
    start: int
    """Where its bytes begin in the file."""
    num_bytes: int


def read_shards(folder: Path, name: str) -> dict[str, Entry]:
    """Return {tensor name: where it is} of a checkpoint folder, in the order of the files; only headers are read.

    Raises ModelError where a weight file is missing, cut short or corrupt, where a tensor is in two files, or where
    the index promises one that its file does not hold.
    """
    files = weight_names(ModelFiles(name=name, folder=folder))
    found: dict[str, Entry] = {}
    for file in files:
        header, data = safetensors_header(folder / file)
        for tensor, entry in header.items():
            if tensor == "__metadata__":
                continue
            if tensor in found:
                raise ModelError(
                    f"The tensor {tensor} of {name} is in two weight files, {found[tensor].file.name} and {file}; "
                    "fetch the checkpoint again."
                )
            start, stop = entry["data_offsets"]
            found[tensor] = Entry(
                file=folder / file,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                start=data + start,
                num_bytes=stop - start,
            )
    if files != (WEIGHTS,):
        _check_index(folder, name, found)
    return found


def _check_index(folder: Path, name: str, found: Mapping[str, Entry]) -> None:
    for tensor, file in read_json(folder / INDEX)["weight_map"].items():
        if tensor not in found or found[tensor].file.name != file:
            raise ModelError(
                f"The file {INDEX} of {name} says that {file} holds {tensor}, and it does not; fetch both again."
            )


def same_bytes(a: Entry, b: Entry) -> bool:
    """Tell whether two tensors are the same, bit for bit."""
    if (a.dtype, a.shape, a.num_bytes) != (b.dtype, b.shape, b.num_bytes):
        return False
    with a.file.open("rb") as left, b.file.open("rb") as right:
        left.seek(a.start)
        right.seek(b.start)
        for low in range(0, a.num_bytes, _PIECE):
            count = min(_PIECE, a.num_bytes - low)
            if left.read(count) != right.read(count):
                return False
    return True


def twice_there(
    tied: Mapping[str, str], of_target: Mapping[str, str], entries: Mapping[str, Entry], name: str
) -> set[str]:
    """Return the names in the files of tensors that repeat the one they are tied to: the loader drops them too.

    `tied` is {name in the model: name of what it is tied to}, `of_target` {name in the model: name in the files}.
    Raises ModelError where the two differ: then the config is wrong, and stock loaders do not tie them.
    """
    found = set()
    for target, source in tied.items():
        if target in of_target and source in of_target:
            again, first = of_target[target], of_target[source]
            if not same_bytes(entries[again], entries[first]):
                raise ModelError(untied_message(name, again, first))
            found.add(again)
    return found


def untied_message(name: str, again: str, first: str) -> str:
    """Return what to say where two tied tensors differ."""
    return (
        f"The files of {name} hold {again} and {first} with different values, and its config ties them; set "
        "tie_word_embeddings to false in its config.json."
    )


def fingerprint(entries: Iterable[Entry], config: Path) -> str:
    """Return a SHA-256 that tells one checkpoint from another: config, headers, and samples of every file's bytes.

    Reading all bytes would take as long as loading; 64 evenly spaced pieces of each file change with a retrained or a
    damaged copy.
    """
    digest = hashlib.sha256(config.read_bytes())
    for file in sorted({entry.file for entry in entries}):
        header, _ = safetensors_header(file)
        digest.update(json.dumps([file.name, header], sort_keys=True).encode())
        length = file.stat().st_size
        with file.open("rb") as opened:
            for i in range(_SAMPLES):
                opened.seek((length - 1) * i // _SAMPLES)
                digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()
