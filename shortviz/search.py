"""The best start for each n without measuring every block on all the text: successive elimination."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shortviz.block_losses import open_engine
from shortviz.errors import PlanError, Stopped
from shortviz.handle import ModelHandle
from shortviz.losses import check_windows
from shortviz.records import Block, Floats, OnProgress, Progress, TextInfo, WindowSet

Z = 3.0
"""A start is dropped once the mean of its paired differences to the leader exceeds this many standard errors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowBest:
    """What the search found for blocks of n layers."""

    n: int
    start: int
    """The leader: lowest mean increase among the starts that were never dropped."""
    tied: tuple[int, ...]
    """Starts that the text could not tell from the leader, the leader included."""
    increase: float
    """NLL(pruned) - NLL(uncut) of the leader, in nats."""
    stderr: float
    """Its standard error over windows; NaN with one window."""
    windows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The best start of every n up to a limit."""

    rows: tuple[RowBest, ...]
    text: TextInfo
    cells_measured: int
    """Blocks times windows that were run."""
    cells_exhaustive: int
    """What measuring every block on every window would have run."""


def search_best_starts(
    handle: ModelHandle,
    windows: WindowSet,
    *,
    max_n: int | None = None,
    z: float = Z,
    on_progress: OnProgress | None = None,
    stop: threading.Event | None = None,
) -> SearchResult:
    """Return the best start for each n = 1 .. max_n (L-1 if None), and the starts statistically tied with it.

    Window by window, all starts still in the race are measured; then a start is dropped once it is worse than the
    leader of its row by more than `z` standard errors of their paired differences (the same windows stand behind
    both). The variance of a difference is taken as the larger of its own and the row's median: with two windows its
    own alone would be a lottery. A row with one start left is done. Blocks that the config cannot express take no part.
    Raises PlanError for a max_n outside 1 .. L-1, Stopped before the first window, TextError and NumericsError as
    `evaluate` does.
    """
    layers = handle.info.num_layers
    limit = layers - 1 if max_n is None else max_n
    if not 1 <= limit <= layers - 1:
        raise PlanError(f"The largest n to search is {limit}; it must be 1 to {layers - 1}.")
    check_windows(handle, windows)
    engine = open_engine(handle, windows.tokens[0])
    rows = {n: [Block(start=s, n=n) for s in range(layers - n + 1)] for n in range(1, limit + 1)}
    racing = {n: [b for b in row if handle.info.illegal_reason(b) is None] for n, row in rows.items()}
    samples: dict[Block, list[float]] = {block: [] for row in racing.values() for block in row}
    for index, tokens in enumerate(windows.tokens):
        wanted = [block for row in racing.values() if len(row) > 1 or index < 2 for block in row]
        if not wanted or (stop is not None and stop.is_set()):
            break
        opened = engine.open(tokens)
        measured = opened.losses(wanted, stop)
        if measured is None:
            break
        for block, nll in zip(measured[0], measured[1][0], strict=True):
            samples[block].append(float(nll) - opened.base.nll)
        racing = {n: _still_racing(row, samples, z) for n, row in racing.items()}
        if on_progress is not None:
            left = sum(len(row) for row in racing.values())
            detail = f"{left} blocks left for {limit} sizes"
            total = len(windows.tokens)
            on_progress(Progress(stage="search", done=index + 1, total=total, unit="windows", detail=detail))
    if not any(samples.values()):
        raise Stopped("Stopped before the first window was measured; there is nothing to keep.")
    return SearchResult(
        rows=tuple(_best(row, samples) for row in racing.values() if row),
        text=windows.info,
        cells_measured=sum(len(values) for values in samples.values()),
        cells_exhaustive=len(samples) * len(windows.tokens),
    )


def _still_racing(row: Sequence[Block], samples: dict[Block, list[float]], z: float) -> list[Block]:
    """Return the blocks of a row that are not yet worse than its leader for certain; blocks that give NaN go."""
    finite = [block for block in row if np.isfinite(samples[block]).all()]
    if len(finite) < 2 or len(samples[finite[0]]) < 2:
        return finite
    values: Floats = np.array([samples[block] for block in finite])
    differences = values - values[int(values.mean(1).argmin())]
    own = differences.var(1, ddof=1)
    typical = np.median(own[own > 0]) if (own > 0).any() else 0.0
    margin = z * np.sqrt(np.maximum(own, typical) / values.shape[1])
    return [block for block, ahead in zip(finite, differences.mean(1) <= margin, strict=True) if ahead]


def _best(row: Sequence[Block], samples: dict[Block, list[float]]) -> RowBest:
    means = [float(np.mean(samples[block])) for block in row]
    leader = row[int(np.argmin(means))]
    values = samples[leader]
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return RowBest(
        n=leader.n,
        start=leader.start,
        tied=tuple(block.start for block in row),
        increase=min(means),
        stderr=error,
        windows=len(values),
    )
