"""The triangular map of a criterion over all blocks, as a Plotly figure."""

import math
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from shortviz.analysis.compare import grid_difference, shift_words, start_shifts
from shortviz.analysis.planning import best_starts, cells, rescale_rows
from shortviz.criteria.base import label, units
from shortviz.figures.cells import grid_of, hover_rows, hover_template, raw_range
from shortviz.records.formatting import layer_words, with_error
from shortviz.records.json import Floats
from shortviz.records.measured import BlockDistances, Grid
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block

# What every map of blocks is drawn on: cells, axes, the outline of the chosen block, invisible hit targets.
#
# A click on a Plotly heatmap never reaches Streamlit 1.67 (streamlit issue #8760, open), so the heatmaps carry colour
# only and an invisible scatter on top is what a person hits: hoverdistance -1 makes the nearest cell answer anywhere.

NEUTRAL = "#9e9e9e"
NO_HOVER = {"hoverinfo": "skip"}
_MIN_HEIGHT, _CELL_HEIGHT = 420, 12


def text_colour(dark: bool) -> str:
    """Return the colour of words on a transparent chart."""
    return "#fafafa" if dark else "#31333f"


def heatmap(layers: int, z: Floats, scale: Any, limits: tuple[float, float], bar: dict[str, Any] | None) -> go.Heatmap:
    """Return the colours of all cells, `z[n-1][start]`; it never answers the mouse."""
    gap = 1 if layers <= 64 else 0
    cells = np.round(z, 5).astype(object)  # of objects: sent as lists, and Plotly does not check them cell by cell
    cells[np.isnan(z)] = None
    return go.Heatmap(
        x=list(range(layers)),
        y=list(range(1, layers + 1)),
        z=cells,
        zmin=limits[0],
        zmax=limits[1],
        colorscale=scale,
        showscale=bar is not None,
        colorbar=bar,
        hoverongaps=False,
        hoverinfo="skip",
        xgap=gap,
        ygap=gap,
    )


def mark_size(layers: int, smallest: float, largest: float) -> float:
    """Return the size of a mark in pixels: as large as its cell allows, within limits."""
    return min(max(280.0 / layers, smallest), largest)


def hit_targets(layers: int, customdata: list[list[int | str]], hovertemplate: str) -> go.Scatter:
    """Return the invisible marks that a person hits; `customdata` is [[start, n, words ...], ...].

    It goes out as lists (a numeric array would come back from the browser as an object); wrapped in an array of objects
    Plotly does not check thousands of rows word by word. All points answer the mouse, and only one is drawn: a deep map
    has thousands, and drawing what nobody sees took most of the time of a click.
    """
    invisible = {"marker": {"opacity": 0}}
    wrapped = np.empty((len(customdata), len(customdata[0]) if customdata else 0), dtype=object)
    wrapped[:] = customdata
    return go.Scatter(
        mode="markers",
        x=[row[0] for row in customdata],
        y=[row[1] for row in customdata],
        customdata=wrapped,
        hovertemplate=hovertemplate,
        marker={
            "symbol": "square",
            "size": mark_size(layers, 4, 12),
            "opacity": 0,
            "color": NEUTRAL,
            "maxdisplayed": 1,
        },
        selected=invisible,
        unselected=invisible,
        name="blocks",
    )


def _ticks(first: int, last: int) -> list[int]:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if (last - first) / s <= 16)
    return sorted({first, *(v for v in range(first, last + 1) if v % step == 0)})


def add_key(figure: go.Figure, lines: list[str], *, dark: bool) -> None:
    """Say in the empty half what the marks mean; words and signs, because a legend would copy one cell's ink."""
    figure.add_annotation(
        text="<br>".join(lines),
        x=1,
        y=1,
        xref="paper",
        yref="paper",
        xanchor="right",
        yanchor="top",
        align="left",
        showarrow=False,
        font={"color": text_colour(dark), "size": 12},
    )


def lay_out_map(figure: go.Figure, layers: int, *, dark: bool, selected: Block | None) -> None:
    """Give the figure the axes and the mouse of a map, and outline the chosen block."""
    ink = text_colour(dark)
    axis = {"fixedrange": True, "zeroline": False, "showgrid": False, "ticks": "outside", "tickcolor": ink}
    figure.update_layout(
        height=max(_MIN_HEIGHT, _CELL_HEIGHT * layers),
        margin={"l": 48, "r": 88, "t": 8, "b": 44, "autoexpand": False},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": ink, "size": 12},
        hovermode="closest",
        hoverdistance=-1,
        uirevision="map",
        xaxis={
            **axis,
            "range": [-0.5, layers - 0.5],
            "title": {"text": "start layer (first layer removed)", "font": {"color": ink}},
            "tickvals": _ticks(0, layers - 1),
            "tickfont": {"color": ink},
        },
        yaxis={
            **axis,
            "range": [0.5, layers + 0.5],
            "title": {"text": "n (layers removed)", "font": {"color": ink}},
            "tickvals": _ticks(1, layers),
            "tickfont": {"color": ink},
        },
        showlegend=False,
    )
    if selected is not None:
        _outline(figure, selected)


def _outline(figure: go.Figure, block: Block) -> None:
    place = {"x0": block.start - 0.5, "x1": block.start + 0.5, "y0": block.n - 0.5, "y1": block.n + 0.5}
    for colour, width in (("#ffffff", 5), ("#d5006d", 2.5)):  # two tones: seen on any cell and on any page
        figure.add_shape(type="rect", layer="above", line={"color": colour, "width": width}, **place)


Scale = Literal["per_n", "raw", "difference"]
_PALETTES = {"cividis": "cividis_r", "viridis": "viridis_r"}


@dataclass(frozen=True, kw_only=True, slots=True)
class MapView:
    """How a person looks at a map."""

    scale: "Scale" = "per_n"
    """`per_n`: each row runs from 0 (its best block) to 1 (its worst). `raw`: the criterion's own units. `difference`:
    predicted rank minus measured rank, -1 to 1, on a diverging palette."""
    palette: Literal["cividis", "viridis"] = "cividis"
    """Yellow is low = redundant in both; cividis is made for all kinds of colour vision."""
    selected: Block | None = None
    dark: bool = False
    limits: tuple[float, float] | None = None
    """Ends of the raw scale, where several maps share one; None is the map's own."""


def distance_map(distances: BlockDistances, criterion: str, model: ModelInfo, view: MapView) -> go.Figure:
    """Return the map: x the start layer, y the number of layers n, colour the criterion.

    The traces are always the same, whatever has been measured so far; the last one is the hit target, with
    `customdata` rows [start, n, words ...] as Python lists (an array comes back from the browser as an object).

    Raises:
        RunError: the criterion was not measured.
    """
    grid = grid_of(distances, criterion)
    layers = grid.num_layers
    scaled = rescale_rows(grid)
    low, high = (view.limits if view.scale == "raw" else None) or _limits(grid, criterion, view.scale)
    colour = scaled if view.scale == "per_n" else grid.mean
    palette = "RdBu" if view.scale == "difference" else _PALETTES[view.palette]
    flat = np.where(np.isnan(colour) & ~np.isnan(grid.mean), 0.0, np.nan)
    shade = np.nan_to_num((colour - low) / (high - low), nan=0.3)
    figure = go.Figure(
        [
            heatmap(layers, colour, palette, (low, high), _bar(criterion, grid, view, (low, high))),
            heatmap(layers, flat, [[0.0, NEUTRAL], [1.0, NEUTRAL]], (0.0, 1.0), None),
            _best_rings(grid, model, visible=view.scale != "difference"),
            _cannot_marks(model, layers, shade),
            _sink_marks(distances, grid, model, shade),
            hit_targets(layers, hover_rows(distances, criterion, model), hover_template(criterion, grid.samples)),
        ]
    )
    lay_out_map(figure, layers, dark=view.dark, selected=view.selected)
    marks = ["○  best start of its row", "□  chosen block", "∕  cannot be exported"]
    if distances.norms.sink_layers:
        marks.append("~  removes a sink layer")
    add_key(figure, marks, dark=view.dark)
    return figure


def _limits(grid: Grid, criterion: str, scale: Scale) -> tuple[float, float]:
    if scale == "difference":
        return -1.0, 1.0
    return (0.0, 1.0) if scale == "per_n" else raw_range(grid, criterion)


def _bar(criterion: str, grid: Grid, view: MapView, limits: tuple[float, float]) -> dict[str, Any]:
    unit = f", {units(criterion)}" if units(criterion) else ""
    words = {
        "raw": f"{unit}, {limits[0]:g} to {limits[1]:g}",
        "per_n": ", rescaled per n: 0 = best",
        "difference": ": rank minus measured rank; red: worse than predicted",
    }[view.scale]
    # It ends below the corner where Streamlit lays its toolbar over the chart.
    place = {"x": 1.01, "xpad": 0, "y": 0, "yanchor": "bottom", "ypad": 0, "len": 0.93, "thickness": 12}
    return {"title": {"text": label(criterion) + words, "side": "right"}, **place}


def _best_rings(grid: Grid, model: ModelInfo, *, visible: bool) -> go.Scatter:
    best = best_starts(grid, model) if visible else {}
    return go.Scatter(
        mode="markers",
        x=list(best.values()),
        y=list(best),
        name="best start of its row",
        # White with a dark rim: seen on the light and on the dark end of both palettes.
        marker={
            "symbol": "circle",
            "size": mark_size(grid.num_layers, 3.5, 9),
            "color": "#ffffff",
            "line": {"width": 1.5, "color": "#000000"},
        },
        unselected={"marker": {"opacity": 1}},
        **NO_HOVER,
    )


def _ink(shade: Floats, places: list[tuple[int, int]]) -> list[str]:
    return ["#000000" if shade[n - 1, start] < 0.55 else "#ffffff" for start, n in places]


def _cannot_marks(model: ModelInfo, layers: int, shade: Floats) -> go.Scatter:
    places = [(start, n) for start, n, _ in model.illegal if 0 < n < layers and start + n <= layers] + [(0, layers)]
    ink = _ink(shade, places)
    return go.Scatter(
        mode="markers",
        x=[start for start, _ in places],
        y=[n for _, n in places],
        name="cannot be exported",
        marker={
            "symbol": "line-ne-open",
            "size": mark_size(layers, 4, 14),
            "color": ink,
            "line": {"width": 2, "color": ink},
        },
        unselected={"marker": {"opacity": 1}},
        **NO_HOVER,
    )


def _sink_marks(distances: BlockDistances, grid: Grid, model: ModelInfo, shade: Floats) -> go.Scatter:
    sinks = distances.norms.sink_layers
    step = math.ceil(grid.num_layers / 60)  # thousands of letters would make a deep model's map slow to draw
    best = best_starts(grid, model)
    places = [
        (start, n)
        for start, n in cells(grid.num_layers)
        if start % step == 0 and n % step == 0 and any(start <= sink < start + n for sink in sinks)
    ]
    ink = ["#000000" if best.get(n) == s else c for (s, n), c in zip(places, _ink(shade, places), strict=True)]
    return go.Scatter(
        mode="text",
        x=[start for start, _ in places],
        y=[n for _, n in places],
        text=["~"] * len(places),
        textfont={"size": mark_size(grid.num_layers, 8, 12), "color": ink},
        selected={"textfont": {"color": "#000000"}},  # without it a click elsewhere would fade the marks
        name="removes a sink layer",
        **NO_HOVER,
    )


# The difference map: one criterion on two texts, block by block, on a diverging palette centred at 0. No streamlit.

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
            heatmap(
                layers, found.mean, PALETTE, (-limit, limit), _difference_bar(criterion, names, limit, per_n=per_n)
            ),
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


def _difference_bar(criterion: str, names: tuple[str, str], limit: float, *, per_n: bool) -> dict[str, object]:
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
