"""What each cell of a map shows: its colour value, its place in the row, and the words of its tooltip."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shortviz import criteria
from shortviz.analysis.planning import best_starts, cells, exportable, tied_starts
from shortviz.criteria.base import MEASURED, label
from shortviz.errors import RunError
from shortviz.records.formatting import block_text, layer_words, layers_text, with_error
from shortviz.records.json import Floats
from shortviz.records.measured import BlockDistances, BlockLosses, BoundaryNorms, Grid
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.records.table import Table, left, right

if TYPE_CHECKING:
    import pandas as pd


def grid_of(distances: BlockDistances, criterion: str) -> Grid:
    """Return the grid of a criterion; raises RunError, naming those that were measured, where it was not."""
    if criterion not in distances.criteria:
        measured = ", ".join(distances.criteria)
        raise RunError(f"Criterion {criterion!r} was not measured in this run; choose from {measured}.")
    return distances.criteria[criterion]


CLIPPED = 0.95
"""Of the cells, so many lie on the scale of values: one block of 75 nats must not make all others look alike."""


def value_range(grid: Grid, criterion: str) -> tuple[float, float]:
    """Return the ends of the scale of values, round numbers (1, 2, 5): up to the CLIPPED quantile of the cells.

    It begins at the lowest possible value; for measured losses, whose scale is logarithmic, at the lowest one above 0.
    Steps that wide keep the colours still while the map fills in.
    """
    known = criteria.info(criterion) if criterion in criteria.names() else None
    low, high = (known.low, known.high) if known is not None else (0.0, math.inf)
    measured = grid.mean[np.isfinite(grid.mean)]
    top = float(np.quantile(measured, CLIPPED)) if measured.size else 0.0
    if criterion in MEASURED:
        positive = measured[measured > 0]
        least = float(positive.min()) if positive.size else 0.01
        low = round_number(max(least, top / 1000), up=False)
    if top <= low:
        return low, max(min(high, 1.0), 2 * low)
    return low, min(round_number(top, up=True), high)


def round_number(value: float, *, up: bool) -> float:
    """Return the next number above or below that is 1, 2 or 5 times a power of ten."""
    decade = 10.0 ** math.floor(math.log10(value))
    steps = [step * decade for step in (1, 2, 5, 10)]
    return next(step for step in steps if step >= value) if up else [step for step in steps if step <= value][-1]


def rank_shares(grid: Grid) -> Floats:
    """Return the place of each block in its row from 0 (the lowest) to 1 (the highest), shape (L, L); equals share one.

    NaN outside the triangle, where nothing is measured, and in rows without a spread.
    """
    shares = np.full(grid.mean.shape, np.nan)
    for n in range(1, grid.num_layers + 1):
        row = grid.row(n)
        known = np.sort(row[np.isfinite(row)])
        if known.size > 1 and known[-1] > known[0]:
            places = (np.searchsorted(known, row) + np.searchsorted(known, row, side="right") - 1) / 2
            shares[n - 1, : len(row)] = np.where(np.isfinite(row), places / (known.size - 1), np.nan)
    return shares


HOVER_BLOCK = "<b>%{customdata[2]}</b><br>"


def row_ranks(grid: Grid) -> dict[int, list[int]]:
    """Return the places of all blocks in their rows, as `Grid.rank` has them: one more than the blocks below."""
    rows = {n: grid.row(n) for n in range(1, grid.num_layers + 1)}
    return {n: (np.searchsorted(np.sort(row), row) + 1).tolist() for n, row in rows.items()}


def hover_template(criterion: str) -> str:
    """Return the tooltip's fixed words; the rest of each cell's tooltip is in its `hover_rows`."""
    return (
        f"{HOVER_BLOCK}{escape(label(criterion))} %{{customdata[3]}}<br>%{{customdata[4]}}%{{customdata[5]}}"
        "<extra></extra>"
    )


def hover_rows(distances: BlockDistances, criterion: str, model: ModelInfo) -> list[list[int | str]]:
    """Return [start, n, layers, distance, place in its row, warnings] of every block, row by row."""
    grid = grid_of(distances, criterion)
    reasons = {(start, n): reason for start, n, reason in model.illegal}
    sinks = distances.norms.sink_layers
    sign = criterion in MEASURED
    ranks = row_ranks(grid)
    rows: list[list[int | str]] = []
    for start, n in cells(grid.num_layers):
        value = grid.at(Block(start=start, n=n))
        known, blocks = not math.isnan(value[0]), grid.num_layers - n + 1
        place = f"rank {ranks[n][start]} of {blocks}" if blocks > 1 else "the only block of its size"
        if blocks > 1 and max(ranks[n]) == 1:
            place = f"nothing to tell the {blocks} blocks of this size apart"
        rows.append(
            [
                start,
                n,
                layer_words(start, n),
                with_error(*value, sign=sign) if known else "not measured yet",
                place if known else "",
                _warnings(start, n, grid.num_layers, sinks, reasons.get((start, n))),
            ]
        )
    return rows


def _warnings(start: int, n: int, layers: int, sinks: tuple[int, ...], reason: str | None) -> str:
    lines = []
    if n == layers:
        lines.append("removes every layer: nothing would be left to run")
    if reason is not None:
        lines.append(f"cannot be exported: {escape(reason)}")
    written = [sink for sink in sinks if start <= sink < start + n]
    if written:
        lines.append(f"removes layer {layers_text(written)}, which writes the attention sink")
    return "".join(f"<br>{line}" for line in lines)


# What a map says, in words and in tables: for people who do not see it, and for the keyboard.

_SHOWN_TIES = 6


def map_alt(distances: BlockDistances, criterion: str, model: ModelInfo) -> str:
    """Return the map's finding in one or two sentences: the best blocks of a few sizes, and the sink layers."""
    grid = grid_of(distances, criterion)
    best = best_starts(grid, model)
    words = label(criterion)
    if not best:
        return f"Map of {words}: nothing is measured yet."
    layers = grid.num_layers
    sizes = [n for n in dict.fromkeys([1, max(1, layers // 8), max(1, layers // 4)]) if n in best]
    found = [f"{layer_words(best[n], n)} for n {n} ({with_error(*grid.at(Block(start=best[n], n=n)))})" for n in sizes]
    kind = "windows" if criterion in MEASURED else "rows"
    sinks = distances.norms.sink_layers
    sink = f" Layer {layers_text(sinks)} writes the attention sink." if sinks else ""
    return (
        f"By {words} over {grid.samples:,} {kind} of text, the blocks that change {model.id} ({layers} layers) least "
        f"are {', '.join(found)}.{sink}"
    )


def map_table(distances: BlockDistances, criterion: str) -> "pd.DataFrame":
    """Return the raw map as a table: one row per n (the index, from 1), one column per start layer ("0", "1", ...)."""
    import pandas as pd

    grid = grid_of(distances, criterion)
    layers = grid.num_layers
    index = pd.RangeIndex(1, layers + 1, name="n")
    return pd.DataFrame(grid.mean.copy(), index=index, columns=[str(start) for start in range(layers)])


class BestBlock(NamedTuple):
    """The lowest block of a size that can be exported."""

    n: int
    start: int
    layers: str
    """`21-28`."""
    distance: float
    stderr: float
    gap: float
    """To the second best; NaN with one block."""
    tied: bool
    """Whether another block is within the error of it (`planning.tied_starts`)."""
    ties: str
    """The starts of those blocks."""
    note: str


def best_blocks(grid: Grid, model: ModelInfo, sinks: Sequence[int] = ()) -> list[BestBlock]:
    """Return the best block of every n = 1..L-1 that has one; `sinks` write the attention sink."""
    possible = exportable(grid, model)
    found = []
    for n, start in best_starts(grid, model).items():
        if n == grid.num_layers:
            continue
        value, stderr = grid.at(Block(start=start, n=n))
        gaps = np.delete(possible.row(n), start) - value
        gaps = gaps[~np.isnan(gaps)]
        ties = [other for other in tied_starts(possible, n) if other != start]
        gone = [layer for layer in sinks if start <= layer < start + n]
        found.append(
            BestBlock(
                n=n,
                start=start,
                layers=block_text(start, n),
                distance=value,
                stderr=stderr,
                gap=float(gaps.min()) if gaps.size else math.nan,
                tied=bool(ties),
                ties=", ".join(map(str, ties)),
                note=f"removes layer {layers_text(gone)}, which writes the attention sink" if gone else "",
            )
        )
    return found


def best_table(distances: BlockDistances, criterion: str, model: ModelInfo) -> "pd.DataFrame":
    """Return the best blocks as a data frame, with the fields of `BestBlock` as its columns."""
    import pandas as pd

    found = best_blocks(grid_of(distances, criterion), model, distances.norms.sink_layers)
    return pd.DataFrame(found, columns=BestBlock._fields)


def best_words(
    found: Sequence[BestBlock],
    value: str,
    more: Mapping[str, Callable[[BestBlock], str]] | None = None,
    *,
    caption: str = "",
    sign: bool = False,
) -> Table:
    """Return the best blocks in words, with `more` columns of one's own; a long list of ties is cut short."""
    more = more or {}
    rows = []
    for block in found:
        ties = block.ties.split(", ")
        shown = ", ".join(ties[:_SHOWN_TIES]) + (f" and {len(ties) - _SHOWN_TIES} more" * (len(ties) > _SHOWN_TIES))
        number = with_error(block.distance, block.stderr, sign=sign)
        rows.append([str(block.n), block.layers, number, *(words(block) for words in more.values()), shown, block.note])
    columns = right("n", "layers", value, *more) + left("tied with starts", "note")
    return Table(columns, rows, caption).without_empty()


# Several runs side by side: what they have in common, one scale for all, one block in each.


def as_map(losses: BlockLosses, beside: BlockDistances | None = None) -> BlockDistances:
    """Return the measured map in the shape of a distance map, so that the same charts and tables show it.

    Its criteria are those of MEASURED; the norms of the distances `beside` it mark the blocks that remove a sink layer.
    """
    zeros = np.zeros(losses.num_layers + 1)
    return BlockDistances(
        num_layers=losses.num_layers,
        criteria={"nll_increase": losses.increase, "kl": losses.kl},
        norms=BoundaryNorms(first=zeros, rest=zeros) if beside is None else beside.norms,
        text=losses.text,
        seconds=losses.seconds,
    )


def maps(run: Run) -> BlockDistances | None:
    """Return everything that can be drawn as a map, distances and measured losses, as criteria of one record."""
    measured = as_map(run.losses, run.distances) if run.losses else None
    if run.distances is None or measured is None:
        return run.distances or measured
    return replace(run.distances, criteria={**run.distances.criteria, **measured.criteria})


def in_common(found: Sequence[BlockDistances]) -> list[str]:
    """Return the criteria that all of these have, in the order of the first."""
    return [name for name in found[0].criteria if all(name in one.criteria for one in found)] if found else []


def shared_limits(found: Sequence[BlockDistances], criterion: str) -> tuple[float, float]:
    """Return the ends of one raw scale for all these maps."""
    ends = [value_range(one.criteria[criterion], criterion) for one in found]
    return min(low for low, _ in ends), max(high for _, high in ends)


class InRun(NamedTuple):
    """One block in one run."""

    name: str
    value: float
    stderr: float
    rank: int
    blocks: int
    """Blocks of its size in that model."""
    best: int
    """Start of the lowest block of its size."""


def block_in(found: Mapping[str, BlockDistances], criterion: str, block: Block) -> list[InRun]:
    """Return the block's number in every run whose model is deep enough for it and has it measured."""
    rows = []
    for name, one in found.items():
        grid = one.criteria[criterion]
        if block.start + block.n > grid.num_layers or math.isnan(grid.at(block)[0]):
            continue
        row = grid.row(block.n)
        known = int(np.isfinite(row).sum())
        rows.append(InRun(name, *grid.at(block), grid.rank(block), known, int(np.nanargmin(row))))
    return rows
