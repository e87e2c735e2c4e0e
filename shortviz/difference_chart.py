"""The difference map: one criterion on two texts, block by block, on a diverging palette centred at 0. No streamlit."""

import math
from html import escape

import numpy as np
import plotly.graph_objects as go

from shortviz.map_canvas import NO_HOVER, add_key, heatmap, hit_targets, lay_out_map, mark_size
from shortviz.map_cells import best_starts, cells, label, units
from shortviz.records import Block, Floats, Grid, ModelInfo
from shortviz.sensitivity import grid_difference, shift_words, start_shifts
from shortviz.words import layer_words, with_error

PALETTE = "RdBu_r"
"""Blue below 0, white at 0, red above."""
_NAME_LENGTH = 20
"""Characters of a text's name that fit beside the colour bar."""


def difference_figure(
    one: Grid,
    other: Grid,
    model: ModelInfo,
    *,
    criterion: str,
    names: tuple[str, str] = ("A", "B"),
    per_n: bool = True,
    selected: Block | None = None,
    dark: bool = False,
) -> go.Figure:
    """Return the map of `other` minus `one`: x the start layer, y the number of layers n, red where `other` is higher.

    `names` are short words for the two texts. `per_n` compares rows rescaled to 0 (best) .. 1 (worst), else the
    criterion's own units. The last trace is the hit target, with `customdata` rows [start, n, words ...] as on the
    distance map, so that a click chooses the block; `selected` is outlined.
    Raises RunError where the grids are of models of different depth.
    """
    found = grid_difference(one, other, per_n=per_n)
    layers, limit = found.num_layers, _limit(found)
    figure = go.Figure(
        [
            heatmap(layers, found.mean, PALETTE, (-limit, limit), _bar(criterion, names, limit, per_n=per_n)),
            _best(one, model, "circle-open", names[0]),
            _best(other, model, "diamond-open", names[1]),
            hit_targets(layers, _hover_rows(one, other, found), _hover(criterion, names, per_n=per_n)),
        ]
    )
    lay_out_map(figure, layers, dark=dark, selected=selected)
    marks = [f"○  best start on {escape(names[0])}", f"◇  best start on {escape(names[1])}", "□  chosen block"]
    add_key(figure, marks, dark=dark)
    return figure


def difference_alt(
    one: Grid, other: Grid, model: ModelInfo, *, criterion: str, names: tuple[str, str] = ("A", "B")
) -> str:
    """Return the finding of the difference map in two sentences."""
    return f"{names[1]} minus {names[0]} by {label(criterion)}. {shift_words(start_shifts(one, other, model))}"


def _limit(found: Grid) -> float:
    """Return the end of the colour scale, the same on both sides: the largest difference, or 1 where there is none."""
    known = np.abs(found.mean[np.isfinite(found.mean)])
    return float(known.max()) if known.size and known.max() > 0 else 1.0


def _bar(criterion: str, names: tuple[str, str], limit: float, *, per_n: bool) -> dict[str, object]:
    unit = units(criterion) or "units of the criterion"
    scale = "per n" if per_n else f"{unit}, ±{limit:.3g}"
    other = names[1] if len(names[1]) <= _NAME_LENGTH else f"{names[1][: _NAME_LENGTH - 1]}…"
    words = f"difference, {scale}; red: higher on {escape(other)}"
    place = {"x": 1.01, "xpad": 0, "y": 0, "yanchor": "bottom", "ypad": 0, "len": 0.93, "thickness": 12}
    return {"title": {"text": words, "side": "right"}, **place}


def _best(grid: Grid, model: ModelInfo, symbol: str, name: str) -> go.Scatter:
    best = best_starts(grid, model)
    size = mark_size(grid.num_layers, 4, 11)
    return go.Scatter(
        mode="markers",
        x=list(best.values()),
        y=list(best),
        name=f"best start on {name}",
        marker={"symbol": symbol, "size": size if symbol == "circle-open" else size - 2, "color": "#000000"},
        unselected={"marker": {"opacity": 1}},
        **NO_HOVER,
    )


def _hover(criterion: str, names: tuple[str, str], *, per_n: bool) -> str:
    one, other = map(escape, names)
    scaled = " (rows rescaled to 0 .. 1)" if per_n else ""
    return (
        "<b>Removes %{customdata[2]}</b> (start %{customdata[0]}, n %{customdata[1]})<br>"
        f"{escape(label(criterion))}<br>{one}: %{{customdata[3]}}<br>{other}: %{{customdata[4]}}<br>"
        f"difference %{{customdata[5]}}{scaled}<extra></extra>"
    )


def _hover_rows(one: Grid, other: Grid, found: Grid) -> list[list[int | str]]:
    ranks = [{n: _ranks(grid.row(n)) for n in range(1, grid.num_layers + 1)} for grid in (one, other)]
    rows: list[list[int | str]] = []
    for start, n in cells(found.num_layers):
        block = Block(start=start, n=n)
        blocks = found.num_layers - n + 1
        values = [
            f"{with_error(*grid.at(block))}, rank {rank[n][start]} of {blocks}"
            for grid, rank in zip((one, other), ranks, strict=True)
        ]
        rows.append([start, n, layer_words(start, n), *values, _signed(*found.at(block))])
    return rows


def _ranks(row: Floats) -> list[int]:
    return [int(rank) for rank in np.searchsorted(np.sort(row), row) + 1]


def _signed(value: float, error: float) -> str:
    if math.isnan(value):
        return "not known"
    certain = "" if math.isnan(error) else (", within two errors" if abs(value) <= 2 * error else "")
    return with_error(value, error, sign=True) + certain
