"""What safetensors and GGUF files hold, from their headers alone; broken files are found before they are loaded."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gguf.constants import GGML_QUANT_SIZES

from shortviz.errors import ModelError

_SAFETENSORS_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F4": 4,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit."""

_GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_GGUF_STRING, _GGUF_ARRAY = 8, 9


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


def safetensors_parameters(path: Path) -> int:
    """Return the number of parameters in a local safetensors file, after checking that the file is whole.

    Raises:
        ModelError: Where the file is no safetensors file, or is cut short.
    """
    header, _ = safetensors_header(path)
    return _read_entries(path, header)[0]


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return (header, where the tensors' bytes begin) of a local safetensors file, after checking that it is whole.

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
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise ModelError(f"The header of {path} is corrupt ({error}); fetch the file again.") from error
    _, end = _read_entries(path, header)
    if size != 8 + length + end:
        state = "cut short" if size < 8 + length + end else "longer than it should be"
        raise ModelError(f"The file {path} is {state}: {size} of {8 + length + end} bytes; fetch it again.")
    return header, 8 + length


def _read_entries(path: Path, header: Any) -> tuple[int, int]:
    """Return (parameters, end of the last tensor in bytes) of a safetensors header."""
    parameters = 0
    places: list[tuple[int, int, str]] = []
    try:
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            count = math.prod(entry["shape"])
            start, stop = entry["data_offsets"]
            if (stop - start) * 8 != count * _SAFETENSORS_BITS[entry["dtype"]]:
                raise ModelError(f"The header of {path} is corrupt (tensor {name}); fetch the file again.")
            parameters += count
            places.append((start, stop, name))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"The header of {path} is corrupt ({error!r}); fetch the file again.") from error
    end = 0
    for start, stop, name in sorted(places):
        if start != end:  # the format has no holes, and no two tensors share bytes
            raise ModelError(f"The header of {path} is corrupt (the place of {name}); fetch the file again.")
        end = stop
    return parameters, end


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
