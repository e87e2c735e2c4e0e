"""Running sums over sequences: mergeable, serialisable, exact to resume from. No torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shortviz.records import Floats, Grid


def mean_and_stderr(samples: Sequence[float] | Floats) -> tuple[float, float]:
    """Return the mean of samples and its standard error, which is NaN with fewer than two."""
    values = np.asarray(samples, dtype=np.float64)
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error


def paired_stderr(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the standard error of the mean difference of two series over the same samples.

    NaN where they are not of one length, or have fewer than two.
    """
    return mean_and_stderr(np.subtract(one, other))[1] if len(one) == len(other) > 1 else math.nan


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sums:
    """Sum and sum of squares of one number for every pair of boundaries, over `count` samples; float64.

    Everything a mean and its standard error need, and two of them add up: that one property gives streaming,
    error bars, checkpoints and data-parallel reduction.
    """

    total: Floats
    squares: Floats
    count: int

    @classmethod
    def zeros(cls, size: int) -> "Sums":
        """Return the sums of no sample, for `size` numbers."""
        return cls(total=np.zeros(size), squares=np.zeros(size), count=0)

    def add(self, samples: Floats) -> "Sums":
        """Return the sums with more samples, shape (samples, size)."""
        return Sums(
            total=self.total + samples.sum(0),
            squares=self.squares + np.square(samples).sum(0),
            count=self.count + len(samples),
        )

    def merge(self, other: "Sums") -> "Sums":
        """Return the sums over the samples of both."""
        return Sums(
            total=self.total + other.total, squares=self.squares + other.squares, count=self.count + other.count
        )

    @property
    def mean(self) -> Floats:
        """Mean over samples; NaN where there is none."""
        return self.total / self.count if self.count else np.full_like(self.total, np.nan)

    @property
    def stderr(self) -> Floats:
        """Standard error of the mean; NaN with fewer than two samples."""
        if self.count < 2:
            return np.full_like(self.total, np.nan)
        variance = (self.squares - np.square(self.total) / self.count) / (self.count - 1)
        result: Floats = np.sqrt(np.maximum(variance, 0.0) / self.count)
        return result

    def grid(self, num_layers: int) -> Grid:
        """Return mean and standard error laid out by block; the pairs are those of `np.triu_indices(L+1, 1)`."""
        start, end = np.triu_indices(num_layers + 1, 1)
        mean, stderr = np.full((2, num_layers, num_layers), np.nan)
        mean[end - start - 1, start] = self.mean
        stderr[end - start - 1, start] = self.stderr
        return Grid(mean=mean, stderr=stderr, samples=self.count)


def pack(sums: Mapping[str, Sums]) -> dict[str, Floats]:
    """Return the arrays of named sums, as `np.savez` takes them."""
    arrays: dict[str, Floats] = {}
    for name, s in sums.items():
        arrays |= {f"{name}.total": s.total, f"{name}.squares": s.squares, f"{name}.count": np.array(float(s.count))}
    return arrays


def unpack(arrays: Mapping[str, Floats]) -> dict[str, Sums]:
    """Return the named sums that `pack` laid out."""
    names = [key.removesuffix(".total") for key in arrays if key.endswith(".total")]
    return {
        name: Sums(
            total=np.array(arrays[f"{name}.total"]),
            squares=np.array(arrays[f"{name}.squares"]),
            count=int(arrays[f"{name}.count"]),
        )
        for name in names
    }
