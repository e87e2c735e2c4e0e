"""Successive elimination: which starts of each n may still be the best, and what was found. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shortviz.errors import PlanError
from shortviz.record_json import Many, Number
from shortviz.records import Block, Floats, ModelInfo, TextInfo
from shortviz.sums import mean_and_stderr

Z = 3.0
"""A start is dropped once the mean of its paired differences to the leader exceeds this many standard errors."""
CERTAIN_FROM = 2
"""Windows before anything is dropped: one gives no error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowBest:
    """What the search found for blocks of n layers."""

    n: int
    start: int
    """The leader: lowest mean increase among the starts that were never dropped."""
    tied: Many[int]
    """Starts that the text could not tell from the leader, the leader included."""
    increase: float
    """NLL(pruned) - NLL(uncut) of the leader, in nats."""
    stderr: Number
    """Its standard error over windows; NaN with one window."""
    windows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The best start of every n up to a limit."""

    rows: Many[RowBest]
    text: TextInfo
    cells_measured: int
    """Blocks times windows that were run."""
    cells_exhaustive: int
    """What measuring every block on every window would have run."""


def check_max_n(num_layers: int, max_n: int) -> None:
    """Raise PlanError for a largest n to search outside 1 .. L-1."""
    if not 1 <= max_n <= num_layers - 1:
        raise PlanError(f"The largest n to search is {max_n}; it must be 1 to {num_layers - 1}.")


class SuccessiveElimination:
    """The starts of each n = 1 .. max_n that may still be the best; blocks that the config cannot express take no part.

    Window by window all of them are measured; then a start is dropped once it is worse than the leader of its row by
    more than `z` standard errors of their paired differences (the same windows stand behind both). The variance of a
    difference is taken as the larger of its own and the row's median: with two windows its own alone would be a
    lottery. A row with one start left is done.
    """

    def __init__(self, model: ModelInfo, max_n: int | None = None, *, z: float = Z) -> None:
        """Let all legal blocks start; raises PlanError for a max_n outside 1 .. L-1."""
        layers = model.num_layers
        limit = layers - 1 if max_n is None else max_n
        check_max_n(layers, limit)
        rows = {n: [Block(start=s, n=n) for s in range(layers - n + 1)] for n in range(1, limit + 1)}
        self.remaining = {n: [b for b in row if model.illegal_reason(b) is None] for n, row in rows.items()}
        self.samples: dict[Block, list[float]] = {block: [] for row in self.remaining.values() for block in row}
        self.windows = 0
        self.z = z

    def wanted(self) -> list[Block]:
        """Return the blocks to measure on the next window; none when every row is decided."""
        early = self.windows < CERTAIN_FROM
        return [block for row in self.remaining.values() if early or len(row) > 1 for block in row]

    def add(self, blocks: Sequence[Block], increases: Floats) -> None:
        """Add one window's increases in NLL of the wanted blocks, and drop the starts that are certainly worse."""
        for block, increase in zip(blocks, increases, strict=True):
            self.samples[block].append(float(increase))
        self.windows += 1
        self.remaining = {n: self._not_eliminated(row) for n, row in self.remaining.items()}

    @property
    def left(self) -> int:
        """Blocks not eliminated yet."""
        return sum(len(row) for row in self.remaining.values())

    def result(self, text: TextInfo, windows: int) -> SearchResult:
        """Return the leaders so far; `windows` is how many there are in all."""
        return SearchResult(
            rows=tuple(self._best(row) for row in self.remaining.values() if row),
            text=text,
            cells_measured=sum(len(values) for values in self.samples.values()),
            cells_exhaustive=len(self.samples) * windows,
        )

    def _not_eliminated(self, row: Sequence[Block]) -> list[Block]:
        """Return the blocks of a row that are not yet worse than its leader for certain; blocks that give NaN go."""
        finite = [block for block in row if np.isfinite(self.samples[block]).all()]
        if len(finite) < 2 or len(self.samples[finite[0]]) < CERTAIN_FROM:
            return finite
        values: Floats = np.array([self.samples[block] for block in finite])
        differences = values - values[int(values.mean(1).argmin())]
        own = differences.var(1, ddof=1)
        typical = np.median(own[own > 0]) if (own > 0).any() else 0.0
        margin = self.z * np.sqrt(np.maximum(own, typical) / values.shape[1])
        return [block for block, ahead in zip(finite, differences.mean(1) <= margin, strict=True) if ahead]

    def _best(self, row: Sequence[Block]) -> RowBest:
        means = [float(np.mean(self.samples[block])) for block in row]
        leader = row[int(np.argmin(means))]
        values = self.samples[leader]
        error = mean_and_stderr(values)[1]
        return RowBest(
            n=leader.n,
            start=leader.start,
            tied=tuple(block.start for block in row),
            increase=min(means),
            stderr=error,
            windows=len(values),
        )
