"""What safetensors and GGUF files hold, from their headers alone; broken files are found before they are loaded."""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gguf.constants import GGML_QUANT_SIZES

from shortviz.errors import ModelError
from shortviz.model.files import INDEX, WEIGHTS, ModelFiles, read_json, weight_names

_SAFETENSORS_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F4": 4,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit."""

_GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_GGUF_STRING, _GGUF_ARRAY = 8, 9

_PIECE = 4 * 1024 * 1024
_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """The metadata of a GGUF file."""

    architecture: str
    """llama.cpp's name, e.g. `llama`."""
    name: str
    num_layers: int
    parameters: int
    largest: int
    """Parameters of the largest tensor."""


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


def read_gguf_header(path: Path) -> GgufHeader:
    """Return what a GGUF file holds, after checking that the file is whole.

    Raises:
        ModelError: Where the file is no GGUF file, is cut short or holds more than one file's share of a model.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"The file {path} is not a GGUF file: it does not begin with the letters GGUF.")
        try:
            metadata, tensors = _read_gguf(file)
        except (struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
            raise ModelError(f"The GGUF file {path} is corrupt or cut short; fetch it again.") from error
        alignment = int(metadata.get("general.alignment", 32))
        start = -(-file.tell() // alignment) * alignment
    end = start + max((offset + num_bytes for _, _, offset, num_bytes in tensors), default=0)
    if size < end:
        raise ModelError(f"The GGUF file {path} is cut short: {size} of {end} bytes; fetch it again.")
    if int(metadata.get("split.count", 1)) > 1:
        raise ModelError(f"The GGUF file {path} is one part of several; join the parts with llama-gguf-split --merge.")
    architecture = str(metadata.get("general.architecture", ""))
    layers = metadata.get(f"{architecture}.block_count")
    if not architecture or layers is None:
        raise ModelError(f"The GGUF file {path} names no architecture or number of layers; it is not a language model.")
    return GgufHeader(
        architecture=architecture,
        name=str(metadata.get("general.name", "")),
        num_layers=int(layers),
        parameters=sum(count for _, count, _, _ in tensors),
        largest=max((count for _, count, _, _ in tensors), default=0),
    )


def _read_gguf(file: BinaryIO) -> tuple[Mapping[str, Any], list[tuple[str, int, int, int]]]:
    """Return (metadata, tensors as (name, elements, offset, bytes)), leaving the file after the tensor table."""
    version, num_tensors, num_keys = _unpack(file, "IQQ")
    if version not in (2, 3):
        raise ModelError(f"The GGUF file {file.name} has version {version}; versions 2 and 3 can be read.")
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = _read_string(file)
        metadata[key] = _read_value(file, _unpack(file, "I")[0])
    tensors = []
    for _ in range(num_tensors):
        name = _read_string(file)
        shape = _unpack(file, f"{_unpack(file, 'I')[0]}Q")
        kind, offset = _unpack(file, "IQ")
        block, block_bytes = GGML_QUANT_SIZES[kind]
        count = math.prod(shape)
        tensors.append((name, count, offset, count // block * block_bytes))
    return metadata, tensors


def _read_value(file: BinaryIO, kind: int) -> Any:
    """Return a metadata value; of an array, only its length."""
    if kind == _GGUF_STRING:
        return _read_string(file)
    if kind != _GGUF_ARRAY:
        return _unpack(file, _GGUF_SCALARS[kind])[0]
    of, length = _unpack(file, "IQ")
    if of in _GGUF_SCALARS:
        file.seek(length * struct.calcsize(f"<{_GGUF_SCALARS[of]}"), 1)
    else:
        for _ in range(length):
            _read_value(file, of)
    return length


def _read_string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    text = file.read(length) if length < _MAX_HEADER_BYTES else b""
    if len(text) != length:
        raise struct.error("the string is cut short")
    return text.decode("utf-8")


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


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
