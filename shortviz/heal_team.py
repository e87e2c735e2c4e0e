"""Several processes training one model (`accelerate launch`): each has its own windows, the gradients are averaged.

Only the trained weights' gradients travel, which for adapters is little; no wrapper around the model is needed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Team:
    """One process among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    """Where numbers that travel must be."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def mean(self, value: float) -> float:
        """Return the mean of a number over the processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return float(total) / self.size

    def any(self, flag: bool) -> bool:
        """Tell whether any process says so; all must ask together."""
        return self.mean(float(flag)) > 0

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Put the mean over the processes into each tensor."""
        if self.size == 1:
            return
        for gradient in gradients:
            torch.distributed.all_reduce(gradient)
            gradient.div_(self.size)


def team(device: torch.device) -> Team:
    """Return this process's place; alone unless torch.distributed was started before (`accelerate.PartialState`)."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Team()
    on = device if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    return Team(rank=torch.distributed.get_rank(), size=torch.distributed.get_world_size(), device=on)
