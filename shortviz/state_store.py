"""Where the residual streams of all calibration batches live between two layers: in memory, or in a mapped file.

Exact: every token's state at every boundary is kept, (L+1, tokens, hidden), for all pairs of boundaries are compared.
Sampled: two boundaries of all tokens, and all boundaries of some tokens of each row: position 0, the last one, and
evenly spaced ones between.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shortviz.errors import ResourceError
from shortviz.words import size


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


def widest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """Return the dtype that holds the values of all of these."""
    return reduce(torch.promote_types, dtypes)


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
            "--out, which keeps them in a file."
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
