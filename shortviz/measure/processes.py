"""Several processes on one measurement: `accelerate launch -m shortviz measure ...` (or torchrun).

Every process has the whole model, or streams it, and takes every size-th batch of the text; what they found is added up
once, at the end. One of them, rank 0, prints and writes.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import Tensor

from shortviz.errors import ModelError, ResourceError, ShortvizError
from shortviz.measure.gram import TokenSample
from shortviz.measure.row_scores import RowScores
from shortviz.progress import Watch
from shortviz.records.json import Floats
from shortviz.records.model import SPREAD
from shortviz.records.sums import Sums

if TYPE_CHECKING:
    from shortviz.records.model import ModelRef


T = TypeVar("T")

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

    def checkpoint(self, path: Path) -> Path:
        """Return where this process keeps its own checkpoint, beside the common name."""
        return path.with_name(f"{path.stem}.rank{self.rank}of{self.size}{path.suffix}")

    def wait(self) -> None:
        """Wait until all processes are here."""
        import torch.distributed as dist

        with _lost():
            dist.barrier()

    def all(self, mine: T) -> list[T]:
        """Return what every process hands in, by rank, to all of them."""
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
        for name in facts:
            given = self.all(facts[name])
            odd = next((rank for rank, fact in enumerate(given) if fact != given[0]), None)
            if odd is not None:
                raise ShortvizError(
                    f"Process {odd} of {self.size} has other {name} than process 0; start all of them alike, on the "
                    "same files."
                )


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
            f"Process {os.environ['RANK']} of {size} cannot reach the others ({_first_line(error)}); start them with "
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
            f"Another process of this measurement ended before it was done ({_first_line(error)}); see what it said, "
            "and start the same command again: with --out it goes on from there."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


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


def share(ranks: "Ranks | None", ref: "ModelRef", watch: Watch) -> tuple["ModelRef", Watch]:
    """Return (what this process loads, its watch), once the model's files are here and are the same for all.

    Raises ShortvizError where another process has other files.
    """
    if ranks is None:
        return ref, watch
    if ref.device == SPREAD:
        raise ModelError(f"Several processes each take a device of their own, and --device is {SPREAD}; leave it out.")
    from shortviz.model.headers import fingerprint, read_shards
    from shortviz.model.load import prepare

    watch = watch if ranks.writes else Watch(stop=watch.stop)
    if ranks.local_rank == 0:  # the download, or the de-quantised copy, is made once a machine
        prepare(ref, watch=watch)
    ranks.wait()
    folder = prepare(ref)
    ranks.agree({"model files": fingerprint(read_shards(folder, ref.id).values(), folder / "config.json")})
    return replace(ref, device=_own_device(ref.device, ranks.local_rank)), watch


def _own_device(asked: str, local_rank: int) -> str:
    """Return a GPU of its own for each process of a machine, where there are GPUs and none was named."""
    import torch

    if asked not in ("auto", "cuda") or not torch.cuda.is_available():
        return asked
    return f"cuda:{local_rank % torch.cuda.device_count()}"


# Adding up what several processes measured: sums in float64, samples and rows back in the order of the batches.

One = TypeVar("One", Tensor, Floats)
Found = tuple[dict[str, Sums], TokenSample | None, RowScores]


def added_up(
    ranks: Ranks, sums: Mapping[str, Sums], sample: TokenSample | None, rows: RowScores, batch_rows: Sequence[int]
) -> Found:
    """Return the sums of all processes, and, on rank 0, all their sampled tokens and rows as one process would have.

    `batch_rows` is the number of rows of each batch of the whole text; process r did every size-th from the r-th on.
    """
    total = dict(sums)
    for number, others in enumerate(ranks.all(dict(sums))):
        total = others if number == 0 else {name: one.merge(others[name]) for name, one in total.items()}
    states = ranks.to_writer(None if sample is None else sample.states)
    scores = ranks.to_writer((rows.whole, rows.batches))
    if states is None or scores is None:  # not the writer: nobody reads its record
        return total, None, replace(rows, batches=[], path=None)
    merged = None
    if sample is not None:
        merged = replace(sample, path=None, states=_in_order([list(s or ()) for s in states], batch_rows, ranks.size))
    lines = [[line for batch in batches for line in batch] for _, batches in scores]
    ordered = _in_order(lines, batch_rows, ranks.size)[: rows.limit]
    return (
        total,
        merged,
        replace(
            rows,
            path=None,
            whole=all(whole for whole, _ in scores),
            batches=[np.stack(ordered)] if ordered else [],
        ),
    )


def _in_order(by_rank: Sequence[list[One]], batch_rows: Sequence[int], size: int) -> list[One]:
    """Return one entry per row in the order of the batches, as far as each process came."""
    places = [0] * size
    found: list[One] = []
    for batch, count in enumerate(batch_rows):
        rank = batch % size
        found += by_rank[rank][places[rank] : places[rank] + count]
        places[rank] += count
    return found
