"""What safetensors files hold, from their headers alone; broken files are found before they are loaded."""

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shortviz.errors import ModelError
from shortviz.model.files import INDEX, WEIGHTS, ModelFiles, pieces_of, read_json, weight_names

_SAFETENSORS_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F4": 4,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit."""

_PIECE = 4 * 1024 * 1024
_SAMPLES, _SAMPLE_BYTES = 64, 4096


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

    def pieces(self) -> Iterator[bytes]:
        """Yield its bytes in order; raises ModelError where the file was cut short meanwhile."""
        yield from pieces_of(self.file, self.start, self.num_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartEntry(Entry):
    """Parts of a tensor of a file: of every `row_bytes` bytes from `start` on, those between the pairs in `taken`."""

    row_bytes: int
    taken: tuple[tuple[int, int], ...]

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes in order, some rows at a time; raises ModelError where the file was cut short meanwhile."""
        count = self.num_bytes // sum(last - first for first, last in self.taken)
        at_once = max(1, _PIECE // self.row_bytes) * self.row_bytes
        for raw in pieces_of(self.file, self.start, count * self.row_bytes, at_once=at_once):
            rows = np.frombuffer(raw, np.uint8).reshape(-1, self.row_bytes)
            yield np.concatenate([rows[:, first:last] for first, last in self.taken], axis=1).tobytes()


def safetensors_parameters(path: Path) -> int:
    """Return the number of parameters in a local safetensors file; raises ModelError where it is not whole."""
    return sum(math.prod(entry.shape) for entry in safetensors_header(path).values())


def safetensors_header(path: Path) -> dict[str, Entry]:
    """Return {tensor name: where it is} of a local safetensors file, after checking that it is whole.

    Raises:
        ModelError: Where the file is no safetensors file, or is cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise ModelError(f"The file {path} is not a whole safetensors file ({size} bytes); fetch it again.")
        raw = file.read(length)
    end = 8 + length
    found: dict[str, Entry] = {}
    try:
        for name, fields in json.loads(raw).items():
            if name == "__metadata__":
                continue
            (start, stop), shape, dtype = fields["data_offsets"], tuple(fields["shape"]), fields["dtype"]
            if (stop - start) * 8 != math.prod(shape) * _SAFETENSORS_BITS[dtype]:
                raise ModelError(f"The header of {path} is corrupt (tensor {name}); fetch the file again.")
            found[name] = Entry(file=path, dtype=dtype, shape=shape, start=end + start, num_bytes=stop - start)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"The header of {path} is corrupt ({error!r}); fetch the file again.") from error
    for name, entry in sorted(found.items(), key=lambda item: (item[1].start, item[1].num_bytes)):
        if entry.start != end:  # the format has no holes, and no two tensors share bytes
            raise ModelError(f"The header of {path} is corrupt (the place of {name}); fetch the file again.")
        end += entry.num_bytes
    if size != end:
        state = "cut short" if size < end else "longer than it should be"
        raise ModelError(f"The file {path} is {state}: {size} of {end} bytes; fetch it again.")
    return found


def read_shards(folder: Path, name: str) -> dict[str, Entry]:
    """Return {tensor name: where it is} of a checkpoint folder, in the order of the files; only headers are read.

    Raises ModelError where a weight file is missing, cut short or corrupt, where a tensor is in two files, or where
    the index promises one that its file does not hold.
    """
    files = weight_names(ModelFiles(name=name, folder=folder))
    found: dict[str, Entry] = {}
    for file in files:
        header = safetensors_header(folder / file)
        if twice := next((tensor for tensor in header if tensor in found), None):
            raise ModelError(
                f"The tensor {twice} of {name} is in two weight files, {found[twice].file.name} and {file}; "
                "fetch the checkpoint again."
            )
        found |= header
    if files != (WEIGHTS,):
        for tensor, file in read_json(folder / INDEX)["weight_map"].items():
            if tensor not in found or found[tensor].file.name != file:
                raise ModelError(
                    f"The file {INDEX} of {name} says that {file} holds {tensor}, and it does not; fetch both again."
                )
    return found


def same_bytes(a: Entry, b: Entry) -> bool:
    """Tell whether two tensors are the same, bit for bit; `a` may be parts of one."""
    if (a.dtype, a.shape, a.num_bytes) != (b.dtype, b.shape, b.num_bytes):
        return False
    with b.file.open("rb") as other:
        other.seek(b.start)
        return all(other.read(len(piece)) == piece for piece in a.pieces())


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


def fingerprint(entries: Mapping[str, Entry], config: Path) -> str:
    """Return a SHA-256 that tells one checkpoint from another: config, headers, and samples of every file's bytes.

    Reading all bytes would take as long as loading; 64 evenly spaced pieces of each file change with a retrained or a
    damaged copy.
    """
    digest = hashlib.sha256(config.read_bytes())
    for name, entry in sorted(entries.items()):
        digest.update(repr((name, entry.file.name, entry.dtype, entry.shape, entry.start)).encode())
    for file in sorted({entry.file for entry in entries.values()}):
        length = file.stat().st_size
        with file.open("rb") as opened:
            for i in range(_SAMPLES):
                opened.seek((length - 1) * i // _SAMPLES)
                digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()
