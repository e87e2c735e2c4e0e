"""Where the residual streams of all calibration batches live between two layers: in memory, or in a mapped file.

Exact: every token's state at every boundary is kept, (L+1, tokens, hidden), for all pairs of boundaries are compared.
Sampled: two boundaries of all tokens, and all boundaries of some tokens of each row: position 0, the last one, and
evenly spaced ones between.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from shortviz.errors import ResourceError, ShortvizError
from shortviz.measure.gram import TokenSample
from shortviz.model.layers import widest
from shortviz.model.placement import free_memory
from shortviz.records.formatting import size
from shortviz.settings import settings
from shortviz.streaming.model import StreamedModel

TOKENS_PER_ROW = 32
"""Tokens of a row that are kept at every boundary where not all fit."""
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchShape:
    """Where a right-padded batch of rows lies among all tokens."""

    offset: int
    """Tokens of the batches before it, padding included."""
    lengths: tuple[int, ...]
    """Real tokens of each row."""

    @property
    def width(self) -> int:
        """Columns."""
        return max(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens, padding included."""
        return len(self.lengths) * self.width


@dataclass(frozen=True, kw_only=True, slots=True)
class StatePlan:
    """What is kept, and how many bytes it takes."""

    hidden: int
    dtypes: tuple[torch.dtype, ...]
    """Of the residual stream at boundary 0..L."""
    shapes: tuple[BatchShape, ...]
    positions: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    """By batch and row, the positions kept at every boundary, ascending; None keeps all."""
    per_row: int | None = None
    """Evenly spaced tokens of each row among those positions; None where all are kept."""
    file: Path | None = None
    """Where the states are; None is memory."""

    @property
    def num_boundaries(self) -> int:
        """L+1."""
        return len(self.dtypes)

    @property
    def dtype(self) -> torch.dtype:
        """What every boundary is kept in: it holds the values of all of them."""
        return widest(self.dtypes)

    @property
    def tokens(self) -> int:
        """Tokens of all batches, padding included."""
        return sum(shape.tokens for shape in self.shapes)

    @property
    def kept(self) -> int:
        """Tokens kept at every boundary."""
        return self.tokens if self.positions is None else sum(len(row) for batch in self.positions for row in batch)

    @property
    def num_bytes(self) -> int:
        """Bytes of all states."""
        running = 0 if self.positions is None else 2 * self.tokens
        return (running + self.num_boundaries * self.kept) * self.hidden * self.dtype.itemsize

    @property
    def is_there(self) -> bool:
        """Whether the file of a killed run is there, as long as it was."""
        return self.file is not None and self.file.is_file() and self.file.stat().st_size == max(self.num_bytes, 1)


def batch_shapes(batches: Sequence[Sequence[Sequence[int] | np.ndarray]]) -> tuple[BatchShape, ...]:
    """Return where each batch of rows lies."""
    shapes: list[BatchShape] = []
    for rows in batches:
        offset = shapes[-1].offset + shapes[-1].tokens if shapes else 0
        shapes.append(BatchShape(offset=offset, lengths=tuple(len(row) for row in rows)))
    return tuple(shapes)


def sampled_positions(length: int, per_row: int) -> tuple[int, ...]:
    """Return `per_row` evenly spaced positions out of 1 .. length-1, or all where there are fewer."""
    count = min(per_row, length - 1)
    return tuple(1 + (2 * i + 1) * (length - 1) // (2 * count) for i in range(count))


class StateStore:
    """The states, written boundary by boundary and read back batch by batch."""

    def __init__(self, plan: StatePlan, *, keep_file: bool = False, pinned: bool = False) -> None:
        """Make room for the states; `keep_file` goes on with the file of a killed run, which `is_there`.

        Raises ResourceError where memory or disk does not have it.
        """
        self.plan = plan
        running = 0 if plan.positions is None else 2 * plan.tokens * plan.hidden
        count = running + plan.num_boundaries * plan.kept * plan.hidden
        flat = _in_memory(count, plan, pinned) if plan.file is None else _in_file(count, plan, keep_file)
        self._kept = flat[running:].view(plan.num_boundaries, plan.kept, plan.hidden)
        self._running = None if plan.positions is None else flat[:running].view(2, plan.tokens, plan.hidden)
        self._rows = [_kept_rows(plan, batch) for batch in range(len(plan.shapes))]
        self._pinned = pinned

    def write(self, boundary: int, batch: int, hidden: Tensor) -> None:
        """Keep a batch's states at a boundary, (rows, tokens, hidden).

        From a GPU into pinned memory nobody waits: what reads it next is queued behind it (`of_batch` waits).
        """
        shape = self.plan.shapes[batch]
        flat = hidden.reshape(shape.tokens, -1)
        place = slice(shape.offset, shape.offset + shape.tokens)
        if self._running is None:
            self._kept[boundary, place].copy_(flat, non_blocking=self._pinned)
            return
        self._running[boundary % 2, place].copy_(flat, non_blocking=self._pinned)
        local, low = self._rows[batch]
        self._kept[boundary, low : low + len(local)] = flat[local.to(flat.device)].to(self._kept.device)

    def read(self, boundary: int, batch: int, device: torch.device) -> Tensor:
        """Return a batch's states at the boundary written last, (rows, tokens, hidden), a tensor of its own.

        It has the dtype in which the model has them there.
        """
        shape, dtype = self.plan.shapes[batch], self.plan.dtypes[boundary]
        source = self._kept[boundary] if self._running is None else self._running[boundary % 2]
        found = source[shape.offset : shape.offset + shape.tokens].view(len(shape.lengths), shape.width, -1)
        return found.to(dtype, copy=True) if device.type == "cpu" else found.to(device, non_blocking=True).to(dtype)

    def of_batch(self, batch: int, device: torch.device) -> "StoredBatch":
        """Return all boundaries of a batch, to be compared once all are written."""
        if self._pinned:
            torch.cuda.synchronize(device)
        local, low = self._rows[batch]
        return StoredBatch(self._kept, local, low, device)


class StoredBatch:
    """All boundaries of one batch; reads like the states that a forward pass left (`gram.BoundaryStates`)."""

    def __init__(self, kept: Tensor, local: Tensor, low: int, device: torch.device) -> None:
        self.num_boundaries = kept.shape[0]
        self._kept, self._local, self._low, self.device = kept, local, low, device

    def of_tokens(self, rows: Tensor) -> Tensor:
        """Return the states of some tokens in float64, shape (len(rows), L+1, hidden); a row is b * tokens + t."""
        places = self._low + torch.searchsorted(self._local, rows)
        first, last = int(places[0]), int(places[-1])
        dense = last - first + 1 == len(places)
        chosen = self._kept[:, first : last + 1] if dense else self._kept[:, places]
        result = torch.empty(len(rows), *chosen.shape[::2], dtype=torch.float64, device=self.device)
        return result.copy_(chosen.transpose(0, 1))


def _kept_rows(plan: StatePlan, batch: int) -> tuple[Tensor, int]:
    """Return (rows b * tokens + t of the batch that are kept, ascending; where they begin among all kept)."""
    shape = plan.shapes[batch]
    if plan.positions is None:
        return torch.arange(shape.tokens), shape.offset
    low = sum(len(row) for earlier in plan.positions[:batch] for row in earlier)
    rows = [b * shape.width + t for b, row in enumerate(plan.positions[batch]) for t in row]
    return torch.tensor(rows), low


def _in_memory(count: int, plan: StatePlan, pinned: bool) -> Tensor:
    try:
        return torch.empty(count, dtype=plan.dtype, pin_memory=pinned)
    except RuntimeError as error:
        raise ResourceError(
            f"The states between layers need {size(plan.num_bytes)} of memory, which there is not; give fewer rows, or "
            "a folder to write to, which keeps them in a file."
        ) from error


def _in_file(count: int, plan: StatePlan, keep_file: bool) -> Tensor:
    assert plan.file is not None
    num_bytes = max(plan.num_bytes, 1)
    try:
        plan.file.parent.mkdir(parents=True, exist_ok=True)
        if not keep_file:
            plan.file.unlink(missing_ok=True)
            with plan.file.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, num_bytes)  # the room is taken now, not half-way
        mapped = np.memmap(plan.file, dtype=np.uint8, mode="r+", shape=(num_bytes,))
    except OSError as error:
        plan.file.unlink(missing_ok=True)
        raise ResourceError(
            f"The states between layers need {size(num_bytes)} in {plan.file.parent}, and cannot be kept there "
            f"({error.strerror}); free some space, or give fewer rows."
        ) from error
    tensor = torch.from_numpy(mapped)[: count * plan.dtype.itemsize]
    return tensor.view(plan.dtype)


@contextmanager
def planned_states(
    model: StreamedModel,
    shapes: tuple[BatchShape, ...],
    sample: TokenSample | None,
    *,
    tokens_per_row: int | None,
    memory_bytes: int | None,
    file: Path | None,
    processes: int = 1,
) -> Iterator[StatePlan]:
    """Yield the plan: all tokens where they fit, else a sample of each row, stated in the plan; a temporary file goes.

    Up to `memory_bytes` (by default half of what is free beside the weights) stay in memory, unless `file` says where
    to keep them for a run that can be resumed. A file takes at most half of the free disk before tokens are sampled.
    Each of several `processes` on this machine counts on its share of what is free.
    Raises ResourceError where even the sample does not fit.
    """
    if tokens_per_row is not None and tokens_per_row < 1:
        raise ShortvizError(f"{tokens_per_row} tokens of each row were asked for; keep at least 1.")
    free, among = free_memory(_CPU) // processes, f" for each of {processes} processes" if processes > 1 else ""
    stored = model.store_bytes * sum(shape.tokens for shape in shapes)
    room = free - (model.working_bytes + stored if model.placement.device.type == "cpu" else 0)
    if room < 0:
        raise ResourceError(
            f"Streaming {model.info.id} needs {size(model.working_bytes)} of memory for the weights of two layers, or "
            f"the embeddings, in {model.info.dtype}, and {size(free)} is free{among}; choose the dtype bfloat16."
        )
    memory = room // 2 if memory_bytes is None else memory_bytes
    whole = StatePlan(hidden=model.info.hidden_size, dtypes=model.state_dtypes, shapes=shapes)
    per_row = tokens_per_row or TOKENS_PER_ROW
    part = replace(whole, positions=_positions(shapes, sample, per_row), per_row=per_row)
    choices = [part] if tokens_per_row is not None else [whole, part] if part.num_bytes < whole.num_bytes else [whole]
    if file is not None:
        yield _plan_in_file(choices, file, processes)
    elif choices[0].num_bytes <= memory:
        yield choices[0]
    else:
        with tempfile.TemporaryDirectory(prefix="shortviz-states-", dir=disk_folder()) as folder:
            yield _plan_in_file(choices, Path(folder) / "states", processes)


def disk_folder() -> Path:
    """Return a folder for temporary files that is on a disk: on many systems /tmp is memory."""
    folder = Path(tempfile.gettempdir()).resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    mount = next((place for place in (folder, *folder.parents) if place in mounts), None)
    if mount is None or mounts[mount] not in ("tmpfs", "ramfs"):
        return folder
    cache = settings().cache_dir.absolute()
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _plan_in_file(choices: Sequence[StatePlan], file: Path, processes: int) -> StatePlan:
    there = file.stat().st_size if file.is_file() else 0
    parent = next(p for p in file.parents if p.is_dir())
    free = shutil.disk_usage(parent).free // processes + there
    # A killed run's: what it chose is what goes on.
    chosen = next((plan for plan in choices if plan.num_bytes == there), None) or next(
        (plan for plan in choices if plan.num_bytes <= (free if plan is choices[-1] else free // 2)), None
    )
    if chosen is not None:
        return replace(chosen, file=file)
    raise ResourceError(
        f"The states between layers need {size(choices[-1].num_bytes)}, and the disk of {parent} has {size(free)} "
        "free; free some space, or give fewer or shorter rows."
    )


def _positions(
    shapes: Sequence[BatchShape], sample: TokenSample | None, per_row: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    rows = count()

    def of_row(length: int) -> tuple[int, ...]:
        fitted = sample.positions(next(rows), length) if sample else ()
        return tuple(sorted({0, length - 1, *sampled_positions(length, per_row), *fitted}))

    return tuple(tuple(map(of_row, shape.lengths)) for shape in shapes)
