"""Reading tensors out of safetensors files into memory that is used again, layer after layer.

A page of fresh memory costs the kernel ten times what filling it costs, so the memory of a dropped layer serves the
next but one. Plain reads, not mapped files: what is read is all that is resident, and a file that is cut short under us
is an error and not a crash. Narrow floats are widened piece by piece, while the piece is in the processor's cache.
"""

import math
import mmap
import weakref
from collections.abc import Mapping
from io import RawIOBase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shortviz.errors import ModelError
from shortviz.model.headers import Entry

ALIGNMENT = 64
"""Matrix kernels choose their path by addresses modulo this."""
_PIECE = 1024 * 1024
"""Bytes read at once: with its widened copy they fit the second-level cache of one core."""
_SMALL = 256 * 1024
"""Smaller tensors are not worth keeping memory for."""
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_CHECKED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class WeightReader:
    """Gives the tensors of some files; the memory of those that nobody holds any more is given out again."""

    def __init__(self, entries: Mapping[str, Entry], dtype: torch.dtype, device: torch.device) -> None:
        """Read `entries`; narrower floats are widened to `dtype` where that is wider. On a GPU it is done there."""
        self._entries, self._dtype, self._device = entries, dtype, device
        self._free: dict[int, list[Tensor]] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.suspicious = False
        """Whether something read since this was last set may be NaN or infinite: a sum was, or float16 may be too
        narrow for it."""

    def release(self) -> None:
        """Give free memory back to the system."""
        self._free.clear()

    def read(self, name: str, *, aligned: bool) -> Tensor:
        """Return a tensor; raises ModelError where its file has become shorter, or has a dtype that torch lacks."""
        entry = self._entries[name]
        if entry.dtype not in _DTYPES:
            raise ModelError(f"The tensor {name} is of dtype {entry.dtype}, which cannot be run; choose other weights.")
        stored, count = _DTYPES[entry.dtype], math.prod(entry.shape)
        widens = stored in (torch.float16, torch.bfloat16) and self._dtype in (torch.float32, torch.float64)
        dtype = self._dtype if widens and self._stream is None else stored
        if self._dtype == torch.float16 and stored != torch.float16:
            self.suspicious = True  # what is finite here may overflow there
        shift = 0 if aligned or dtype != stored else entry.start % ALIGNMENT
        memory = self._take(count * dtype.itemsize, shift)
        self._fill(entry, name, memory, dtype, stored)
        found = memory.view(dtype).view(entry.shape)
        return found if self._stream is None else self._moved(found, self._stream)

    def _fill(self, entry: Entry, name: str, memory: Tensor, dtype: torch.dtype, stored: torch.dtype) -> None:
        """Read a tensor piece by piece into memory, each widened while it is in the cache where the dtypes differ."""
        narrow = torch.empty(0 if dtype == stored else min(_PIECE, entry.num_bytes), dtype=torch.uint8)
        with entry.file.open("rb", buffering=0) as file:
            for low in range(0, entry.num_bytes, _PIECE):
                count = min(_PIECE, entry.num_bytes - low)
                piece = memory[low : low + count] if dtype == stored else narrow[:count]
                _read_into(piece, file, entry, low, name)
                values = piece.view(stored)
                if dtype != stored:
                    first = low // stored.itemsize
                    values = memory.view(dtype)[first : first + len(values)].copy_(values)
                if stored in _CHECKED and not math.isfinite(float(values.sum())):
                    self.suspicious = True

    def _moved(self, found: Tensor, stream: "torch.cuda.Stream") -> Tensor:
        """Return the tensor on the GPU, copied beside the work that goes on there."""
        with torch.cuda.stream(stream):
            moved = found.to(self._device, non_blocking=True)
        stream.synchronize()
        moved.record_stream(torch.cuda.default_stream(self._device))  # else freed memory would be written too early
        return moved

    def _take(self, num_bytes: int, shift: int) -> Tensor:
        """Return memory for so many bytes, at an address that is `shift` modulo 64."""
        if num_bytes < _SMALL:
            block = torch.empty(num_bytes + 2 * ALIGNMENT, dtype=torch.uint8)
            low = (shift - block.data_ptr()) % ALIGNMENT
            # Through numpy: a tensor's slice at an odd place has no view.
            return torch.from_numpy(block.numpy()[low : low + num_bytes])
        room = num_bytes + ALIGNMENT
        try:
            block = self._free[room].pop()
        except (KeyError, IndexError):
            self.release()  # what waits is of other sizes: memory is that of the layers at hand, not of all kinds
            block = _fresh(room, pinned=self._stream is not None)
        lent = block.numpy()[shift : shift + num_bytes]
        # Once the last tensor on this memory is gone, so is the array, and the block waits for a tensor of its size.
        weakref.finalize(lent, self._give_back, room, block).atexit = False
        return torch.from_numpy(lent)

    def _give_back(self, room: int, block: Tensor) -> None:
        self._free.setdefault(room, []).append(block)


class LaterTensor:
    """What transformers' loader takes for a slice of a safetensors file: read when indexed.

    Its address modulo 64 is that of its place in the file, as if the file were mapped; 0 if `aligned`.
    """

    def __init__(self, reader: WeightReader, name: str, aligned: bool) -> None:
        self._reader, self._name, self._aligned = reader, name, aligned

    def __getitem__(self, where: Any) -> Tensor:
        """Return the tensor, or a part of it."""
        return self._reader.read(self._name, aligned=self._aligned)[where]


def _fresh(num_bytes: int, *, pinned: bool) -> Tensor:
    """Return new memory that begins at a page and goes back to the system as one piece, in huge pages if there are."""
    if pinned:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    mapped = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return torch.from_numpy(np.frombuffer(mapped, dtype=np.uint8))


def _read_into(piece: Tensor, file: RawIOBase, entry: Entry, low: int, name: str) -> None:
    view, done = piece.numpy().data, 0
    file.seek(entry.start + low)
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            raise ModelError(f"The file {entry.file} ends within the tensor {name}; fetch it again.")
        done += got
