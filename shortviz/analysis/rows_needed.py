"""How many rows of text a choice needs: the best start among the first rows of random orders. No torch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shortviz.records.formatting import layers_text
from shortviz.records.json import Floats
from shortviz.records.measured import RowsNeeded

ORDERS = 40
"""Random orders of the rows that are looked at."""
_SEED = 0


def row_counts(rows: int) -> tuple[int, ...]:
    """Return the row counts that are looked at: 1, 2, 3, 4, 6, 8, 12, ... and all."""
    found = {rows}
    step = 1
    while step < rows:
        found |= {count for count in (step, step * 3 // 2) if count < rows}
        step *= 2
    return tuple(sorted(found))


def count_rows_needed(scores: Floats, num_layers: int, illegal: Sequence[tuple[int, int]] = ()) -> RowsNeeded | None:
    """Return when the choice for each n settles, from one score per row of text and pair, shape (rows, pairs).

    Pairs are those of `np.triu_indices(L+1, 1)`; `illegal` are (start, n) that are never chosen. None with fewer than
    4 rows or a one-layer model.
    """
    rows = len(scores)
    if rows < 4 or num_layers < 2:
        return None
    counts = row_counts(rows)
    edges = np.array([0, *counts[:-1]])
    draw = np.random.default_rng(_SEED)
    best = np.stack(
        [
            _best_starts(np.add.reduceat(scores[draw.permutation(rows)], edges), num_layers, illegal)
            for _ in range(ORDERS)
        ]
    )
    final = _best_starts(scores.sum(0, keepdims=True), num_layers, illegal)[0]
    same = best == final  # (orders, counts, L-1)
    same[:, -1] = True  # sums in another order may differ in the last bit
    # From the back: the first count from which on it never differs again.
    stays = np.flip(np.logical_and.accumulate(np.flip(same, 1), 1), 1)
    first = np.array(counts)[stays.argmax(1)]  # (orders, L-1)
    needed = np.quantile(first, 0.95, axis=0, method="inverted_cdf")
    return RowsNeeded(
        rows=rows,
        orders=ORDERS,
        counts=counts,
        agree=same.mean(0),
        needed=tuple(int(count) for count in needed),
    )


def _best_starts(parts: Floats, num_layers: int, illegal: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Return the best start of n = 1 .. L-1 for the running sums of parts (counts, pairs), shape (counts, L-1)."""
    start, end = np.triu_indices(num_layers + 1, 1)
    grid = np.full((len(parts), num_layers, num_layers), np.inf)
    grid[:, end - start - 1, start] = parts.cumsum(0)
    for first, n in illegal:
        grid[:, n - 1, first] = np.inf
    best: NDArray[np.int64] = grid[:, :-1].argmin(2)
    return best


def rows_needed_words(found: RowsNeeded, sizes: Sequence[int]) -> str:
    """Return in a sentence for which n the rows were enough, and how many would have been."""
    known = [n for n in sizes if found.enough(n)]
    open_ = [n for n in sizes if not found.enough(n)]
    if not known:
        return f"{found.rows} rows are too few to settle the best start of any size."
    most = max(found.needed[n - 1] for n in known)
    rest = f"; not settled: n {layers_text(open_)}" if open_ else ""
    return (
        f"The best start no longer changes after {most} rows for n {layers_text(known)} (in 19 of 20 random orders of "
        f"the {found.rows} rows){rest}."
    )
