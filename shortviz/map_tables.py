"""What a map says, in words and in tables: for people who do not see it, and for the keyboard."""

import math
from typing import TYPE_CHECKING

import numpy as np

from shortviz.map_cells import MEASURED, best_starts, exportable, grid_of, label
from shortviz.planning import tied_starts
from shortviz.records import Block, BlockDistances, Grid, ModelInfo
from shortviz.words import block_text, layer_words, layers_text, with_error

if TYPE_CHECKING:
    import pandas as pd


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


def best_table(distances: BlockDistances, criterion: str, model: ModelInfo) -> "pd.DataFrame":
    """Return the lowest block that can be exported of every n = 1..L-1, one row each.

    Columns: n, start, layers ("21-28"), distance, stderr, gap (to the second best; NaN with one block), tied (whether
    another block is within the error of it, `planning.tied_starts`), ties (the starts of those blocks), note.
    """
    import pandas as pd

    grid = grid_of(distances, criterion)
    best = {n: start for n, start in best_starts(grid, model).items() if n < grid.num_layers}
    possible = exportable(grid, model)
    rows = [_best_row(distances, possible, Block(start=start, n=n)) for n, start in best.items()]
    columns = ["n", "start", "layers", "distance", "stderr", "gap", "tied", "ties", "note"]
    return pd.DataFrame(rows, columns=columns)


def _best_row(
    distances: BlockDistances, grid: Grid, block: Block
) -> tuple[int, int, str, float, float, float, bool, str, str]:
    row = grid.row(block.n)
    value, stderr = grid.at(block)
    gaps = np.delete(row, block.start) - value
    gaps = gaps[~np.isnan(gaps)]
    ties = [start for start in tied_starts(grid, block.n) if start != block.start]
    sinks = distances.sink_layers_in(block)
    return (
        block.n,
        block.start,
        block_text(block.start, block.n),
        value,
        stderr,
        float(gaps.min()) if gaps.size else math.nan,
        bool(ties),
        ", ".join(map(str, ties)),
        f"removes layer {layers_text(sinks)}, which writes the attention sink" if sinks else "",
    )
