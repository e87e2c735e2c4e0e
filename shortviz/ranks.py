"""Several processes on one measurement: `accelerate launch -m shortviz measure ...` (or torchrun).

Every process has the whole model, or streams it, and takes every size-th batch of the text; what they found is added up
once, at the end. One of them, rank 0, prints and writes.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from shortviz.errors import ResourceError, ShortvizError

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
