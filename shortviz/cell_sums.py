"""Running sums for the measured map: every cell has its own count, since rows are measured in the order asked for."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shortviz.records import Floats, Grid

NAMES = ("nll", "increase", "kl")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CellSums:
    """Sum, sum of squares and count over windows of NLL, its increase and KL, for each block; float64.

    Beside them a coarse first sample of each block, from a short piece of text, which stands in until there is a
    whole window. Arrays have shape (L, L), `[n-1, start]`; the numbers of NAMES come first.
    """

    total: Floats
    """Shape (3, L, L)."""
    squares: Floats
    """Shape (3, L, L)."""
    count: Floats
    """Windows; shape (L, L)."""
    coarse: Floats
    """Shape (3, L, L); NaN where not measured."""

    @classmethod
    def zeros(cls, num_layers: int) -> "CellSums":
        """Return the sums of nothing."""
        shape = (len(NAMES), num_layers, num_layers)
        return cls(
            total=np.zeros(shape), squares=np.zeros(shape), count=np.zeros(shape[1:]), coarse=np.full(shape, np.nan)
        )

    def add(self, rows: NDArray[np.int64], starts: NDArray[np.int64], samples: Floats) -> None:
        """Add one window's samples, shape (3, cells), of the cells `[rows, starts]`, in place."""
        self.total[:, rows, starts] += samples
        self.squares[:, rows, starts] += np.square(samples)
        self.count[rows, starts] += 1

    def merge(self, other: "CellSums") -> None:
        """Add the sums of other windows, in place; a coarse sample is taken where there is one."""
        self.total[:] += other.total
        self.squares[:] += other.squares
        self.count[:] += other.count
        self.coarse[:] = np.fmax(self.coarse, other.coarse)

    def grids(self) -> dict[str, Grid]:
        """Return mean and standard error by name; the error is NaN with fewer than two windows."""
        count = self.count
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(count > 0, self.total / count, self.coarse)
            variance = (self.squares - np.square(self.total) / count) / (count - 1)
            stderr = np.where(count > 1, np.sqrt(np.maximum(variance, 0.0) / count), np.nan)
        measured = count[np.isfinite(mean[0])]
        samples = int(measured.min()) if measured.size else 0
        return {name: Grid(mean=m, stderr=e, samples=samples) for name, m, e in zip(NAMES, mean, stderr, strict=True)}

    def pack(self) -> dict[str, Floats]:
        """Return the arrays, as `np.savez` takes them."""
        return {"total": self.total, "squares": self.squares, "count": self.count, "coarse": self.coarse}

    @classmethod
    def unpack(cls, arrays: Mapping[str, Floats]) -> "CellSums":
        """Return the sums that `pack` laid out."""
        return cls(**{name: np.array(arrays[name]) for name in ("total", "squares", "count", "coarse")})
