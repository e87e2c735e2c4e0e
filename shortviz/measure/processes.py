"""Several processes on one measurement: `accelerate launch -m shortviz measure ...` (or torchrun).

Every process has the whole model, or streams it, and takes every size-th batch of the text; what they found is added up
once, at the end. One of them, rank 0, prints and writes.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import reduce
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from shortviz.errors import ModelError, ResourceError, ShortvizError, first_line
from shortviz.measure.gram import RowScores, TokenSample
from shortviz.progress import Watch
from shortviz.records.model import SPREAD, ModelRef
from shortviz.records.sums import Sums

if TYPE_CHECKING:
    from shortviz.model.load import ResolvedModel


T = TypeVar("T")
M = TypeVar("M", bound="ModelRef | ResolvedModel")

_HOURS = 12
"""How long a process waits for one that is still at work; one that died is noticed at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """One process among those of a launch."""

    rank: int
    size: int
    local_rank: int = 0
    """Its number on its own machine."""
    local_size: int = 1
    """Processes on its own machine, which share memory and disk."""

    @property
    def writes(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """Return which of `count` batches are this process's."""
        return range(self.rank, count, self.size)

    def checkpoint(self, path: Path | None) -> Path | None:
        """Return where this process keeps its own checkpoint: of several each beside the common name."""
        if path is None or self.size == 1:
            return path
        return path.with_name(f"{path.stem}.rank{self.rank}of{self.size}{path.suffix}")

    def all(self, mine: T) -> list[T]:
        """Return what every process hands in, by rank, to all of them; it waits until all are here."""
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with _lost():
            dist.all_gather_object(found, mine)
        return found

    def to_writer(self, mine: T) -> list[T] | None:
        """Return what every process hands in, by rank, to rank 0; None to the others."""
        import torch.distributed as dist

        found: list[Any] | None = [None] * self.size if self.writes else None
        with _lost():
            dist.gather_object(mine, found, dst=0)
        return found

    def agree(self, facts: Mapping[str, object]) -> None:
        """Raise ShortvizError, naming the first fact, where the processes do not all hand in the same."""
        every = self.all(facts)
        for name in facts:
            odd = next((rank for rank, given in enumerate(every) if given[name] != every[0][name]), None)
            if odd is not None:
                raise ShortvizError(
                    f"Process {odd} of {self.size} has other {name} than process 0; start all of them alike, on the "
                    "same files."
                )


ALONE = Ranks(rank=0, size=1)


@contextmanager
def joined() -> Iterator[Ranks | None]:
    """Yield this process's place among those that a launcher started, connected; None where there is only this one.

    Raises ResourceError where the others cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield None
        return
    import torch.distributed as dist

    try:
        dist.init_process_group("gloo", timeout=timedelta(hours=_HOURS))
    except (RuntimeError, ValueError) as error:
        raise ResourceError(
            f"Process {os.environ['RANK']} of {size} cannot reach the others ({first_line(error)}); start them with "
            "accelerate launch or torchrun."
        ) from error
    try:
        local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        yield Ranks(rank=dist.get_rank(), size=size, local_rank=local, local_size=beside)
    finally:
        dist.destroy_process_group()


@contextmanager
def _lost() -> Iterator[None]:
    """Turn a connection that broke into words: another process ended."""
    try:
        yield
    except RuntimeError as error:
        raise ResourceError(
            f"Another process of this measurement ended before it was done ({first_line(error)}); see what it said, "
            "and start the same command again: written to a folder, it goes on from there."
        ) from error


# What a command does when a launcher started it several times: one fetches, all compare, one prints and writes.


def refuse_launcher() -> None:
    """Raise ShortvizError where a launcher (torchrun, accelerate) started this process among several."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1" and "RANK" in os.environ:
        raise ShortvizError(
            f"A launcher started {size} processes, and this command runs in one; start it without torchrun or "
            "accelerate launch."
        )


def local_size() -> int:
    """Return how many processes of the launch share this machine, and its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def share(ranks: Ranks | None, model: M, watch: Watch) -> tuple[M | ModelRef, Watch]:
    """Return (what this process loads, its watch), once the model's files are here and are the same for all.

    Where there are GPUs and none was named, each process of a machine gets one of its own. Raises ShortvizError where
    another process has other files.
    """
    if ranks is None:
        return model, watch
    ref = model if isinstance(model, ModelRef) else model.ref
    if ref.device == SPREAD:
        raise ModelError(f"Several processes take a device each, and the device is {SPREAD}; leave it out.")
    import torch

    from shortviz.model.headers import fingerprint, read_shards
    from shortviz.model.load import prepare

    watch = watch if ranks.writes else Watch(stop=watch.stop)
    first = ranks.local_rank == 0  # the download, or the de-quantised copy, is made once a machine
    folder = prepare(ref, watch=watch) if first else None
    ranks.all(None)
    folder = folder or prepare(ref)
    ranks.agree({"model files": fingerprint(read_shards(folder, ref.id), folder / "config.json")})
    if ref.device in ("auto", "cuda") and torch.cuda.is_available():
        ref = replace(ref, device=f"cuda:{ranks.local_rank % torch.cuda.device_count()}")
    return ref, watch


Found = tuple[dict[str, Sums], TokenSample | None, RowScores]


def added_up(
    ranks: Ranks, sums: Mapping[str, Sums], sample: TokenSample | None, rows: RowScores, batch_rows: Sequence[int]
) -> Found:
    """Return the sums of all processes, and, on rank 0, all their sampled tokens and rows as one process would have.

    Sums are in float64; samples and rows are back in the order of the batches. `batch_rows` is the number of rows of
    each batch of the whole text; process r did every size-th from the r-th on.
    """
    every = ranks.all(dict(sums))
    total = {name: reduce(Sums.merge, (one[name] for one in every)) for name in sums}
    found = ranks.to_writer((None if sample is None else sample.states, rows.whole, rows.batches))
    if found is None:  # not the writer: nobody reads its record
        return total, None, replace(rows, batches=[], path=None)
    if sample is not None:
        sample = replace(sample, path=None, states=_in_order([states or [] for states, _, _ in found], batch_rows))
    ordered = _in_order([list(chain.from_iterable(batches)) for _, _, batches in found], batch_rows)[: rows.limit]
    batches = [np.stack(ordered)] if ordered else []
    return total, sample, replace(rows, path=None, whole=all(whole for _, whole, _ in found), batches=batches)


def _in_order(by_rank: Sequence[Sequence[T]], batch_rows: Sequence[int]) -> list[T]:
    """Return one entry per row in the order of the batches, as far as each process came."""
    left = [iter(rows) for rows in by_rank]
    return [row for batch, count in enumerate(batch_rows) for row in islice(left[batch % len(left)], count)]
