"""What to remove: the best blocks of every size, and the plans made of them."""

import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from shortviz.errors import PlanError
from shortviz.records.json import Floats
from shortviz.records.measured import BlockDistances, Grid
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block, PrunePlan


def best_start(grid: Grid, n: int, model: ModelInfo | None = None) -> int | None:
    """Return the start of the lowest block of n layers, the first of equals; None where the row has no legal block.

    With `model`, blocks that its stock config cannot express are passed over.
    """
    row = grid.row(n).copy()
    for start, size, _ in model.illegal if model is not None else ():
        if size == n:
            row[start] = np.nan
    return None if np.isnan(row).all() else int(np.nanargmin(row))


def best_blocks(distances: BlockDistances, criterion: str, model: ModelInfo | None = None) -> tuple[Block, ...]:
    """Return the lowest block of each size n = 1 .. L-1 by a criterion (Gromov et al., eq. 8: argmin over start)."""
    grid = distances.criteria[criterion]
    starts = ((n, best_start(grid, n, model)) for n in range(1, distances.num_layers))
    return tuple(Block(start=start, n=n) for n, start in starts if start is not None)


def tied_starts(grid: Grid, n: int) -> tuple[int, ...]:
    """Return the starts whose mean is within two standard errors of the lowest of the row, the lowest included.

    The errors are added as if the cells were independent. They are not (the same rows of text stand behind both), so
    this names more ties than there are, never fewer. Without errors (one sample) only the lowest itself.
    """
    start = best_start(grid, n)
    if start is None:
        return ()
    row, error = grid.row(n), np.nan_to_num(grid.stderr[n - 1, : len(grid.row(n))])
    margin = 2.0 * np.hypot(error, error[start])
    return tuple(int(i) for i in np.flatnonzero(row - row[start] <= margin))


def simple_plan(num_layers: int, n: int) -> PrunePlan:
    """Return the paper's simple strategy: the deepest n layers except the final one, L-n-1 .. L-2.

    Gromov et al. 2024, arXiv 2403.17887, section 4.4; it needs healing. (Other tools remove the final layer too.)
    Raises PlanError where n does not leave the final layer and one more boundary.
    """
    if not 1 <= n <= num_layers - 1:
        raise PlanError(f"n is {n}; the simple strategy removes 1 to {num_layers - 1} of {num_layers} layers.")
    return PrunePlan.of_blocks(num_layers, Block(start=num_layers - n - 1, n=n))


def parse_layers(text: str) -> tuple[int, ...]:
    """Return the layers named by a list such as `3,7,8` or `3-5,9`, ascending; raises PlanError naming the bad part."""
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise PlanError(f"{part.strip()!r} is not a layer; write layers as 3,7,8 or 3-5,9.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise PlanError(f"The range {part.strip()!r} runs backwards; write it as {last}-{first}.")
        if last > 100_000:
            raise PlanError(f"There is no layer {last}; write layers as 3,7,8 or 3-5,9.")
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def rescale_rows(grid: Grid) -> Floats:
    """Return each row rescaled to 0 (lowest) .. 1 (highest), shape (L, L).

    NaN outside the triangle, where nothing is measured, and in rows without a spread: 0/0 would say something there.
    """
    known = ~np.isnan(grid.mean)
    low = np.min(grid.mean, axis=1, where=known, initial=np.inf, keepdims=True)
    high = np.max(grid.mean, axis=1, where=known, initial=-np.inf, keepdims=True)
    spread = np.where(high > low, high - low, np.nan)
    return (grid.mean - np.where(np.isfinite(low), low, np.nan)) / spread


def exportable(grid: Grid, model: ModelInfo) -> Grid:
    """Return the grid without the blocks that the stock config cannot express: NaN there."""
    mean = grid.mean.copy()
    for start, n, _ in model.illegal:
        mean[n - 1, start] = np.nan
    return replace(grid, mean=mean)


def best_starts(grid: Grid, model: ModelInfo) -> dict[int, int]:
    """Return n -> start of the lowest block that can be exported, for every row n = 1..L that has one."""
    possible = exportable(grid, model)
    best = {n: best_start(possible, n) for n in range(1, grid.num_layers + 1)}
    return {n: start for n, start in best.items() if start is not None}


def cells(num_layers: int) -> Iterable[tuple[int, int]]:
    """Yield (start, n) of every block, row by row from n = 1."""
    return ((start, n) for n in range(1, num_layers + 1) for start in range(num_layers - n + 1))
