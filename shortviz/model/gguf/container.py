"""The GGUF container: the keys and tensors of one file or of all its parts, read from headers and written by streaming.

Keys are kept as the bytes that they are, so that what a cut does not change is copied as it stands, in its order. The
format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; gguf's own reader holds a Python object for each
token of the vocabulary, and its writer spells every key anew.
"""

import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from shortviz.errors import ModelError
from shortviz.model.files import pieces_of
from shortviz.progress import NO_WATCH, Watch

_MAGIC: Final = b"GGUF"
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _INT32, _STRING, _ARRAY = 4, 5, 8, 9
_MOST_BYTES = 100_000_000
"""Of a string: more is a broken length."""
_MOST_NUMBERS = 1024
"""Of an array whose values are read: what is longer is about tokens."""
_PART = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf", re.IGNORECASE)
_SPLIT = ("split.no", "split.count", "split.tensors.count")
"""Keys of a file that is one part of several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One entry of the metadata."""

    kind: int
    """The format's number of its type; of an array's entries, where it is one."""
    value: Any
    """A number, a bool, a text, or a tuple of such numbers; None of an array of texts, or of a very long one."""
    raw: bytes
    """Type and value as the file has them."""

    @property
    def is_array(self) -> bool:
        """Whether it holds several values."""
        return self.raw[:4] == struct.pack("<I", _ARRAY)

    @property
    def length(self) -> int:
        """How many values an array holds, also where they are not read."""
        return int(struct.unpack_from("<Q", self.raw, 8)[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    """One tensor: where it is, or what it is."""

    name: str
    shape: tuple[int, ...]
    """As the format has it: the length of a row first."""
    kind: int
    """The format's number of its type, e.g. 8 for Q8_0."""
    num_bytes: int
    file: Path | None = None
    start: int = 0
    """Where its bytes begin in the file."""
    data: bytes = b""
    """Its bytes, where it is in no file."""

    @property
    def type_name(self) -> str:
        """The type's name, e.g. `Q8_0`."""
        return str(GGMLQuantizationType(self.kind).name)

    @property
    def count(self) -> int:
        """The number of parameters."""
        return math.prod(self.shape)

    def pieces(self) -> Iterator[bytes]:
        """Yield its bytes; raises ModelError where the file has become shorter."""
        if self.file is None:
            yield self.data
            return
        yield from pieces_of(self.file, self.start, self.num_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gguf:
    """What a GGUF file holds, or all parts of one that was split."""

    path: Path
    """The file, or the first part."""
    files: tuple[Path, ...]
    version: int
    keys: Mapping[str, Key]
    """In the file's order."""
    tensors: tuple[GgufTensor, ...]

    def number(self, name: str, default: int = 0) -> int:
        """Return a whole number of the architecture's keys, e.g. `block_count`, or the default where there is none."""
        key = self.keys.get(f"{self.architecture}.{name}")
        return int(key.value) if key is not None and isinstance(key.value, int) else default

    @property
    def architecture(self) -> str:
        """llama.cpp's name, e.g. `llama`."""
        return str(self.keys["general.architecture"].value)

    @property
    def num_layers(self) -> int:
        """Decoder layers; blocks behind them that only predict further tokens are none."""
        return self.number("block_count") - self.number("nextn_predict_layers")

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(tensor.count for tensor in self.tensors)

    @property
    def largest(self) -> int:
        """Parameters of the largest tensor."""
        return max((tensor.count for tensor in self.tensors), default=0)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)


def is_part(name: str) -> bool:
    """Return whether a file of this name is read as one part of several."""
    found = _PART.fullmatch(name)
    return found is not None and int(found["parts"]) > 1


def parts_of(path: Path) -> tuple[Path, ...]:
    """Return the files of a model, in order: the file alone, or all parts of what was split, whichever was named.

    Raises ModelError where a part is missing.
    """
    found = _PART.fullmatch(path.name)
    if found is None or not is_part(path.name):
        return (path,)
    count, suffix = int(found["parts"]), path.name[-5:]
    names = [f"{found['stem']}-{number:05d}-of-{count:05d}{suffix}" for number in range(1, count + 1)]
    if missing := next((name for name in names if not (path.parent / name).is_file()), None):
        raise ModelError(f"{path.name} is one of {count} files of a model, and {missing} is not beside it; fetch it.")
    return tuple(path.parent / name for name in names)


def read_gguf(path: Path) -> Gguf:
    """Return what a GGUF file holds, or all parts of it, after checking that they are whole.

    Raises:
        ModelError: Where it is no GGUF file, is cut short, lacks a part or a key, or has a tensor of an unknown type.
    """
    files = parts_of(path)
    read = [_read_file(file) for file in files]
    first = read[0]
    _check_parts(read)
    tensors: dict[str, GgufTensor] = {}
    for tensor in (tensor for part in read for tensor in part.tensors):
        if tensor.name in tensors:
            raise ModelError(f"The GGUF file {path} holds two tensors called {tensor.name}; fetch it again.")
        tensors[tensor.name] = tensor
    found = replace(
        first, files=files, tensors=tuple(tensors.values()),
        keys={name: key for name, key in first.keys.items() if name not in _SPLIT},
    )  # fmt: skip
    if "general.architecture" not in found.keys or not found.number("block_count"):
        raise ModelError(f"The GGUF file {path} names no architecture or number of layers; it is not a language model.")
    return found


def _check_parts(read: Sequence[Gguf]) -> None:
    """Raise ModelError where files are not all parts of one model, in their order, by what each says of itself."""
    total = sum(len(part.tensors) for part in read)
    for number, part in enumerate(read):
        for name, found in zip(_SPLIT, (number, len(read), total), strict=True):
            stated = part.keys.get(name)
            whole = len(read) == 1 and (name != "split.count" or (stated is not None and stated.value in (0, 1)))
            if stated is not None and stated.value != found and not whole:
                raise ModelError(
                    f"The GGUF file {part.path} has a {name} of {stated.value}, and by its name and the files beside "
                    f"it that is {found}; give the parts of one model the names they had, such as "
                    "model-00001-of-00002.gguf, or fetch them again."
                )


def _read_file(path: Path) -> Gguf:
    """Return what one file holds."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise ModelError(f"The file {path} is not a GGUF file: it does not begin with the letters GGUF.")
        try:
            version, num_tensors, num_keys = _unpack(file, "IQQ")
            if version not in (2, 3):
                swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
                what = "the byte order of big-endian machines" if swapped in (2, 3) else f"version {version}"
                raise ModelError(
                    f"The GGUF file {path} has {what}; versions 2 and 3 can be read, in little-endian order: give such "
                    "a file."
                )
            keys = {}
            for _ in range(num_keys):
                name = _read_string(file)
                if name in keys:
                    raise ModelError(f"The GGUF file {path} holds two keys called {name}; fetch it again.")
                keys[name] = _read_key(file)
            infos = [_read_tensor(file) for _ in range(num_tensors)]
        except (struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
            raise ModelError(f"The GGUF file {path} is corrupt or cut short; fetch it again.") from error
        start = _aligned(file.tell(), alignment_of(keys, path))
    tensors = [_placed(path, start, *info) for info in infos]
    end = max((tensor.start + tensor.num_bytes for tensor in tensors), default=0)
    if size < end:
        raise ModelError(f"The GGUF file {path} is cut short: {size} of {end} bytes; fetch it again.")
    return Gguf(path=path, files=(path,), version=version, keys=keys, tensors=tuple(tensors))


def alignment_of(keys: Mapping[str, Key], path: Path) -> int:
    """Return the number of bytes of which every tensor's place is a multiple; raises ModelError for a wrong one."""
    value = keys["general.alignment"].value if "general.alignment" in keys else 32
    if not isinstance(value, int) or value < 1 or value & (value - 1):
        raise ModelError(f"The GGUF file {path} has a general.alignment of {value}, no power of two; fetch it again.")
    return value


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _placed(path: Path, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
    if kind not in GGML_QUANT_SIZES:
        raise ModelError(
            f"The tensor {name} of {path} is of type {kind}, which this version of the gguf package does not know, so "
            "it can be neither read nor copied; give a file of another quantisation."
        )
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    row = shape[0] if shape else 1
    if row % block:
        raise ModelError(
            f"The tensor {name} of {path} has rows of {row}, no multiple of {block}; fetch the file again."
        )
    num_bytes = math.prod(shape) // block * block_bytes
    return GgufTensor(name=name, shape=shape, kind=kind, num_bytes=num_bytes, file=path, start=start + offset)


def _read_tensor(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    """Return (name, shape, type, offset)."""
    name = _read_string(file)
    (dimensions,) = _unpack(file, "I")
    if dimensions > 4:
        raise struct.error("more dimensions than the format has")
    shape = _unpack(file, f"{dimensions}Q")
    kind, offset = _unpack(file, "IQ")
    return name, shape, kind, offset


def _read_key(file: BinaryIO) -> Key:
    start = file.tell()
    (kind,) = _unpack(file, "I")
    value: Any = None
    if kind == _ARRAY:
        kind, length = _unpack(file, "IQ")
        if kind in _SCALARS:
            values = _take(file, length * struct.calcsize(f"<{_SCALARS[kind]}"))
            value = struct.unpack(f"<{length}{_SCALARS[kind]}", values) if length <= _MOST_NUMBERS else None
        elif kind == _STRING:
            for _ in range(length):
                _take(file, _unpack(file, "Q")[0])
        else:
            raise struct.error("an array of arrays")
    else:
        value = _read_string(file) if kind == _STRING else _unpack(file, _SCALARS[kind])[0]
    end = file.tell()
    file.seek(start)
    return Key(kind=kind, value=value, raw=_take(file, end - start))


def _read_string(file: BinaryIO) -> str:
    return _take(file, _unpack(file, "Q")[0]).decode("utf-8")


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def _take(file: BinaryIO, length: int) -> bytes:
    data = file.read(length) if length <= _MOST_BYTES else b""
    if len(data) != length:
        raise struct.error("the file is cut short")
    return data


# Writing.


def number_key(value: int | float | bool, kind: int = _UINT32) -> Key:
    """Return a key that holds one number."""
    return Key(kind=kind, value=value, raw=struct.pack(f"<I{_SCALARS[kind]}", kind, value))


def text_key(value: str) -> Key:
    """Return a key that holds a text."""
    return Key(kind=_STRING, value=value, raw=struct.pack("<I", _STRING) + _string(value))


def array_key(values: Sequence[int | float | bool] | Sequence[str], kind: int = _INT32) -> Key:
    """Return a key that holds several numbers of one type, or texts."""
    texts = [value for value in values if isinstance(value, str)]
    kind = _STRING if texts else kind
    head = struct.pack("<IIQ", _ARRAY, kind, len(values))
    if texts:
        return Key(kind=kind, value=None, raw=head + b"".join(map(_string, texts)))
    return Key(kind=kind, value=tuple(values), raw=head + struct.pack(f"<{len(values)}{_SCALARS[kind]}", *values))


BOOL: Final = 7
"""The format's number of the type."""


def written_bytes(source: Gguf, keys: Mapping[str, Key], tensors: Iterable[GgufTensor]) -> int:
    """Return the bytes of a file with these keys and tensors."""
    alignment = alignment_of(keys, source.path)
    head, infos = _head(source.version, keys, list(tensors), alignment)
    return _aligned(len(head), alignment) + sum(_aligned(tensor.num_bytes, alignment) for tensor, _ in infos)


def write_gguf(
    path: Path, source: Gguf, keys: Mapping[str, Key], tensors: Sequence[GgufTensor], watch: Watch = NO_WATCH
) -> None:
    """Write these keys and tensors as one file that is on the disk when this returns; tensors are streamed.

    Told in bytes, as the stage `write`. Raises OSError where it cannot be written, Stopped when asked to stop.
    """
    alignment = alignment_of(keys, source.path)
    head, placed = _head(source.version, keys, tensors, alignment)
    done, total = 0, sum(tensor.num_bytes for tensor in tensors)
    with path.open("wb") as file:
        file.write(head)
        start = _aligned(len(head), alignment)
        file.write(bytes(start - len(head)))
        for tensor, offset in placed:
            file.write(bytes(start + offset - file.tell()))
            for piece in tensor.pieces():
                watch.check("The export was stopped; nothing was left behind.")
                file.write(piece)
                done += len(piece)
                watch.tell("write", done=done, total=total, unit="bytes")
        file.write(bytes(_aligned(file.tell(), alignment) - file.tell()))
        file.flush()
        os.fsync(file.fileno())


def _head(
    version: int, keys: Mapping[str, Key], tensors: Sequence[GgufTensor], alignment: int
) -> tuple[bytes, list[tuple[GgufTensor, int]]]:
    """Return all that stands before the tensors' bytes, and where each of these begins after it."""
    parts = [_MAGIC, struct.pack("<IQQ", version, len(tensors), len(keys))]
    parts += [_string(name) + key.raw for name, key in keys.items()]
    placed, offset = [], 0
    for tensor in tensors:
        dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        parts.append(_string(tensor.name) + dimensions + struct.pack("<IQ", tensor.kind, offset))
        placed.append((tensor, offset))
        offset += _aligned(tensor.num_bytes, alignment)
    return b"".join(parts), placed


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data
