"""How much a choice depends on the text it was measured on: two maps side by side. No torch."""

from dataclasses import dataclass

import numpy as np

from shortviz.analysis.planning import best_starts, row_spreads, tied_starts
from shortviz.errors import RunError
from shortviz.records.json import Floats
from shortviz.records.measured import Grid
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.records.run import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class StartShift:
    """The best block of n layers on two texts."""

    n: int
    one: int
    """Best start on the first text."""
    other: int
    """Best start on the second text."""
    tied: bool
    """Whether a text's own errors leave room for the other's choice: then the move may be chance."""
    cost: float
    """What the second text's choice costs on the first: its value there minus the lowest of the row, in the units of
    the criterion; 0 where both choose the same."""

    @property
    def moved(self) -> int:
        """Layers that the best start moves by, towards the end of the model where positive."""
        return self.other - self.one


def check_comparable(one: Run, other: Run) -> None:
    """Raise RunError where two runs are not of one model."""
    if one.model.num_layers != other.model.num_layers:
        raise RunError(
            f"The runs are of {one.model.id} with {one.model.num_layers} layers and {other.model.id} with "
            f"{other.model.num_layers}; choose runs of one model."
        )


def grid_difference(one: Grid, other: Grid, *, per_n: bool = True) -> Grid:
    """Return other minus one, block by block, with the standard error of that difference.

    `per_n` first rescales each row of both to 0 (its best block) .. 1 (its worst), so that it shows where the shape of
    a row changes, not that one text moves the model more than another. The errors are added as independent, as two
    texts are; the error of the scale itself is left out.
    Raises RunError where the grids are of models of different depth.
    """
    if one.num_layers != other.num_layers:
        raise RunError(f"The maps are of {one.num_layers} and {other.num_layers} layers; choose runs of one model.")
    (a, a_error), (b, b_error) = (rescaled(grid) if per_n else (grid.mean, grid.stderr) for grid in (one, other))
    return Grid(mean=b - a, stderr=np.hypot(a_error, b_error), samples=min(one.samples, other.samples))


def rescaled(grid: Grid) -> tuple[Floats, Floats]:
    """Return each row rescaled to 0 (lowest) .. 1 (highest), and its errors, shape (L, L) each.

    NaN outside the triangle, where nothing is measured, and in rows without a spread: 0/0 would say something there.
    """
    low, spread = row_spreads(grid)
    return (grid.mean - low) / spread, grid.stderr / spread


def start_shifts(one: Grid, other: Grid, model: ModelInfo | None = None) -> tuple[StartShift, ...]:
    """Return for each n = 1 .. L-1 where the best start is on either text; rows without a legal block are left out."""
    found = []
    best = (best_starts(one, model), best_starts(other, model))
    for n in (n for n in range(1, one.num_layers) if n in best[0] and n in best[1]):
        here, there = best[0][n], best[1][n]
        tied = here != there and (there in tied_starts(one, n) or here in tied_starts(other, n))
        at_there, at_here = (one.at(Block(start=s, n=n))[0] for s in (there, here))
        found.append(StartShift(n=n, one=here, other=there, tied=tied, cost=at_there - at_here))
    return tuple(found)


def shift_words(shifts: tuple[StartShift, ...]) -> str:
    """Return the finding in one sentence: how often and how far the best start moves."""
    if not shifts:
        return "There is no block to compare."
    moved = [shift for shift in shifts if shift.moved]
    if not moved:
        return f"The best start is the same on both texts for all {len(shifts)} sizes."
    tied = sum(shift.tied for shift in moved)
    furthest = max(moved, key=lambda shift: abs(shift.moved))
    within = f", in {tied} of them within the errors" if tied else ""
    return (
        f"The best start moves for {len(moved)} of {len(shifts)} sizes{within}; furthest for n {furthest.n}, from "
        f"{furthest.one} to {furthest.other}."
    )
