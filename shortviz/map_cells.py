"""What each cell of a map shows: its colour value, its place in the row, and the words of its tooltip."""

import math
from collections.abc import Iterable
from dataclasses import replace
from html import escape
from itertools import accumulate

import numpy as np

from shortviz import criteria
from shortviz.errors import RunError
from shortviz.planning import best_start
from shortviz.records import Block, BlockDistances, Floats, Grid, ModelInfo
from shortviz.words import count, layer_words, layers_text, percent, with_error

MEASURED = {"nll_increase": "measured NLL increase", "kl": "measured KL(uncut || cut)"}
"""Measured quantities that are drawn like a criterion, with their words; in nats per token."""


def label(name: str) -> str:
    """Return the words for a criterion or a measured quantity."""
    return MEASURED.get(name) or criteria.label(name)


def units(name: str) -> str:
    """Return the unit of a criterion or a measured quantity, or nothing where it is not known."""
    if name in MEASURED:
        return "nats per token"
    return criteria.info(name).units if name in criteria.names() else ""


def grid_of(distances: BlockDistances, criterion: str) -> Grid:
    """Return the grid of a criterion.

    Raises:
        RunError: it was not measured; the message names those that were.
    """
    try:
        return distances.criteria[criterion]
    except KeyError:
        measured = ", ".join(distances.criteria)
        raise RunError(f"Criterion {criterion!r} was not measured in this run; choose from {measured}.") from None


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


def raw_range(grid: Grid, criterion: str) -> tuple[float, float]:
    """Return the colour range of the raw scale: from the lowest possible value to the next round number (1, 2, 5).

    Steps that wide keep the colours still while the map fills in, and show more of it than all of an angle's 0..1.
    """
    known = criteria.info(criterion) if criterion in criteria.names() else None
    low, high = (known.low, known.high) if known is not None else (0.0, math.inf)
    measured = grid.mean[np.isfinite(grid.mean)]
    top = float(measured.max()) if measured.size else 0.0
    if top <= 0:
        return low, min(high, 1.0)
    decade = 10.0 ** math.floor(math.log10(top))
    return low, min(next(step * decade for step in (1, 2, 5, 10) if step * decade >= top), high)


def cells(num_layers: int) -> Iterable[tuple[int, int]]:
    """Yield (start, n) of every block, row by row from n = 1."""
    return ((start, n) for n in range(1, num_layers + 1) for start in range(num_layers - n + 1))


def hover_template(criterion: str, samples: int) -> str:
    """Return the tooltip's fixed words; the rest of each cell's tooltip is in its `hover_rows`."""
    return (
        "<b>Removes %{customdata[2]}</b> (start %{customdata[0]}, n %{customdata[1]})<br>"
        f"{escape(label(criterion))} %{{customdata[3]}}<br>%{{customdata[4]}}<br>%{{customdata[5]}}<br>"
        f"over {samples:,} {'windows' if criterion in MEASURED else 'rows'} of text%{{customdata[6]}}<extra></extra>"
    )


def hover_rows(distances: BlockDistances, criterion: str, model: ModelInfo) -> list[list[int | str]]:
    """Return [start, n, layers, distance, place in its row, parameters, warnings] of every block, row by row."""
    grid = grid_of(distances, criterion)
    scaled = rescale_rows(grid)
    reasons = {(start, n): reason for start, n, reason in model.illegal}
    sinks = distances.norms.sink_layers
    parameters = [0, *accumulate(model.layer_parameters)]
    # As Grid.rank, a row at a time: one more than the blocks below.
    ranks = {n: np.searchsorted(np.sort(grid.row(n)), grid.row(n)) + 1 for n in range(1, grid.num_layers + 1)}
    rows: list[list[int | str]] = []
    for start, n in cells(grid.num_layers):
        gone = parameters[start + n] - parameters[start]
        rows.append(
            [
                start,
                n,
                layer_words(start, n),
                _value(*grid.at(Block(start=start, n=n))),
                _place(float(scaled[n - 1, start]), int(ranks[n][start]), grid.num_layers - n + 1),
                f"{count(gone)} parameters ({percent(gone / model.parameters)})",
                _warnings(start, n, grid.num_layers, sinks, reasons.get((start, n))),
            ]
        )
    return rows


def _value(value: float, error: float) -> str:
    return "not measured yet" if math.isnan(value) else with_error(value, error)


def _place(scaled: float, rank: int, blocks: int) -> str:
    if blocks == 1:
        return "the only block of its size"
    if math.isnan(scaled):
        return f"nothing to tell the {blocks} blocks of this size apart"
    return f"rank {rank} of {blocks} in its row, {scaled:.2f} from best (0) to worst (1)"


def _warnings(start: int, n: int, layers: int, sinks: tuple[int, ...], reason: str | None) -> str:
    lines = []
    if n == layers:
        lines.append("/ removes every layer: nothing would be left to run")
    if reason is not None:
        lines.append(f"/ cannot be exported: {escape(reason)}")
    written = [sink for sink in sinks if start <= sink < start + n]
    if written:
        lines.append(f"~ removes layer {layers_text(written)}, which writes the attention sink")
    return "".join(f"<br>{line}" for line in lines)
