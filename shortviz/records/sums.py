"""Running sums over sequences: mergeable, serialisable, exact to resume from. No torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from shortviz.records.json import Floats
from shortviz.records.measured import STUDENT, Grid, student
from shortviz.records.plan import Block


def mean_and_stderr(samples: Sequence[float] | Floats) -> tuple[float, float]:
    """Return the mean of samples and its standard error, with `student`'s factor; NaN with fewer than two."""
    values = np.asarray(samples, dtype=np.float64)
    count = len(values)
    error = float(values.std(ddof=1) / math.sqrt(count) * student(count)) if count > 1 else math.nan
    return float(values.mean()), error


def ratio_and_stderr(top: Sequence[float] | Floats, bottom: Sequence[float] | Floats) -> tuple[float, float]:
    """Return the ratio of the means of two series over the same samples, and its error; NaN where the lower one is 0.

    The error is that of a ratio of two means, to first order (delta method): of each sample's residual from it.
    """
    above, below = (np.asarray(values, dtype=np.float64) for values in (top, bottom))
    if not below.mean():
        return math.nan, math.nan
    ratio = float(above.mean() / below.mean())
    return ratio, mean_and_stderr(above - ratio * below)[1] / abs(float(below.mean()))


def paired_stderr(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the standard error of the mean difference of two series over the same samples.

    NaN where they are not of one length, or have fewer than two.
    """
    return mean_and_stderr(np.subtract(one, other))[1] if len(one) == len(other) > 1 else math.nan


@dataclass(frozen=True, slots=True, eq=False)
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
        return cls(np.zeros(size), np.zeros(size), 0)

    def add(self, samples: Floats) -> "Sums":
        """Return the sums with more samples, shape (samples, size)."""
        return self.merge(Sums(samples.sum(0), np.square(samples).sum(0), len(samples)))

    def merge(self, other: "Sums") -> "Sums":
        """Return the sums over the samples of both."""
        return Sums(self.total + other.total, self.squares + other.squares, self.count + other.count)

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
    parts = {name: [np.array(arrays[f"{name}.{part}"]) for part in ("total", "squares", "count")] for name in names}
    return {name: Sums(total, squares, int(count)) for name, (total, squares, count) in parts.items()}


NAMES = ("nll", "increase", "kl")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CellSums:
    """Sum, sum of squares and count over windows of NLL, its increase and KL, for each block; float64.

    Every cell has its own count, since rows of the map are measured in the order asked for. Beside them a coarse first
    sample of each block, from a short piece of text, stands in until there is a whole window. Arrays have shape (L, L),
    `[n-1, start]`; the numbers of NAMES come first.
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

    def add(self, blocks: Sequence[Block], samples: Floats, *, coarse: bool) -> None:
        """Add one window's samples of these blocks, shape (3, blocks), in place; coarse ones stand beside the sums."""
        at = (slice(None), [block.n - 1 for block in blocks], [block.start for block in blocks])
        if coarse:
            self.coarse[at] = samples
            return
        self.total[at] += samples
        self.squares[at] += np.square(samples)
        self.count[at[1:]] += 1

    def merge(self, other: "CellSums") -> None:
        """Add the sums of other windows, in place; a coarse sample is taken where there is one."""
        self.total[:] += other.total
        self.squares[:] += other.squares
        self.count[:] += other.count
        self.coarse[:] = np.fmax(self.coarse, other.coarse)

    def grids(self) -> dict[str, Grid]:
        """Return mean and standard error by name, as `mean_and_stderr` does."""
        count = self.count
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(count > 0, self.total / count, self.coarse)
            variance = (self.squares - np.square(self.total) / count) / (count - 1)
            factor = np.append(STUDENT, 1.0)[np.minimum(count, len(STUDENT)).astype(np.int64)]
            stderr = np.where(count > 1, np.sqrt(np.maximum(variance, 0.0) / count) * factor, np.nan)
        measured = count[np.isfinite(mean[0])]
        samples = int(measured.min()) if measured.size else 0
        return {name: Grid(mean=m, stderr=e, samples=samples) for name, m, e in zip(NAMES, mean, stderr, strict=True)}

    def pack(self) -> dict[str, Floats]:
        """Return the arrays, as `np.savez` takes them."""
        return asdict(self)

    @classmethod
    def unpack(cls, arrays: Mapping[str, Floats]) -> "CellSums":
        """Return the sums that `pack` laid out."""
        return cls(**{field.name: np.array(arrays[field.name]) for field in fields(cls)})
