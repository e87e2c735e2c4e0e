"""What a map says, in words and in tables: for people who do not see it, and for the keyboard."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shortviz.map_cells import MEASURED, best_starts, exportable, grid_of, label
from shortviz.planning import tied_starts
from shortviz.records import Block, BlockDistances, Grid, ModelInfo
from shortviz.table import Table, left, right
from shortviz.words import block_text, layer_words, layers_text, with_error

if TYPE_CHECKING:
    import pandas as pd

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
