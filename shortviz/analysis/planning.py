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


def exportable(grid: Grid, model: ModelInfo | None) -> Grid:
    """Return the grid without the blocks that the stock config cannot express: NaN there. None knows of none."""
    if model is None or not model.illegal:
        return grid
    mean = grid.mean.copy()
    for start, n, _ in model.illegal:
        mean[n - 1, start] = np.nan
    return replace(grid, mean=mean)


def best_start(grid: Grid, n: int, model: ModelInfo | None = None) -> int | None:
    """Return the start of the lowest block of n layers, the first of equals; None where the row has no legal block.

    With `model`, blocks that its stock config cannot express are passed over.
    """
    row = exportable(grid, model).row(n)
    return None if np.isnan(row).all() else int(np.nanargmin(row))


def best_starts(grid: Grid, model: ModelInfo | None = None) -> dict[int, int]:
    """Return n -> start of the lowest block, for every row n = 1..L that has one; as `best_start` has it."""
    possible = exportable(grid, model)
    best = {n: best_start(possible, n) for n in range(1, grid.num_layers + 1)}
    return {n: start for n, start in best.items() if start is not None}


def best_blocks(distances: BlockDistances, criterion: str, model: ModelInfo | None = None) -> tuple[Block, ...]:
    """Return the lowest block of each size n = 1 .. L-1 by a criterion (Gromov et al., eq. 8: argmin over start)."""
    found = best_starts(distances.criteria[criterion], model)
    return tuple(Block(start=start, n=n) for n, start in found.items() if n < distances.num_layers)


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


def row_spreads(grid: Grid) -> tuple[Floats, Floats]:
    """Return the lowest of each row and how far the highest is from it, shape (L, 1) each; NaN where it is not far."""
    known = ~np.isnan(grid.mean)
    low = np.min(grid.mean, axis=1, where=known, initial=np.inf, keepdims=True)
    high = np.max(grid.mean, axis=1, where=known, initial=-np.inf, keepdims=True)
    return np.where(np.isfinite(low), low, np.nan), np.where(high > low, high - low, np.nan)


def cells(num_layers: int) -> Iterable[tuple[int, int]]:
    """Yield (start, n) of every block, row by row from n = 1."""
    return ((start, n) for n in range(1, num_layers + 1) for start in range(num_layers - n + 1))
