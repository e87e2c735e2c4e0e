"""The triangular map of a criterion over all blocks, as a Plotly figure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from shortviz.analysis.compare import grid_difference, shift_words, start_shifts
from shortviz.analysis.planning import best_starts, cells, rescale_rows
from shortviz.criteria.base import label, units
from shortviz.figures.cells import HOVER_BLOCK, grid_of, hover_rows, hover_template, raw_range, row_ranks
from shortviz.figures.theme import CHOSEN, lay_out, text_colour
from shortviz.records.formatting import layer_words, with_error
from shortviz.records.json import Floats
from shortviz.records.measured import BlockDistances, Grid
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block

# A click on a Plotly heatmap never reaches Streamlit 1.67 (streamlit issue #8760, open), so the heatmaps carry colour
# only and an invisible scatter on top is what a person hits: hoverdistance -1 makes the nearest cell answer anywhere.

NEUTRAL = "#9e9e9e"
_MIN_HEIGHT, _CELL_HEIGHT = 420, 12
_BAR_PLACE = {"x": 1.01, "xpad": 0, "y": 0, "yanchor": "bottom", "ypad": 0, "len": 0.93, "thickness": 12}
"""Of the colour bar: it ends below the corner where Streamlit lays its toolbar over the chart."""


def _heatmap(layers: int, z: Floats, scale: Any, limits: tuple[float, float], bar: str = "") -> go.Heatmap:
    """Return the colours of all cells, `z[n-1][start]`, with the words of their bar; it never answers the mouse."""
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
        showscale=bool(bar),
        colorbar={"title": {"text": bar, "side": "right"}, **_BAR_PLACE} if bar else None,
        hoverongaps=False,
        hoverinfo="skip",
        xgap=gap,
        ygap=gap,
    )


def _mark_size(layers: int, smallest: float, largest: float) -> float:
    """Return the size of a mark in pixels: as large as its cell allows, within limits."""
    return min(max(280.0 / layers, smallest), largest)


def _marks(places: Iterable[tuple[int, int]], name: str, marker: dict[str, Any]) -> go.Scatter:
    """Return marks on the cells (start, n); they never answer the mouse, nor fade when another cell is chosen."""
    starts, sizes = zip(*places, strict=True) if (places := list(places)) else ((), ())
    kept = {"marker": {"opacity": 1}}
    return go.Scatter(mode="markers", x=starts, y=sizes, name=name, marker=marker, unselected=kept, hoverinfo="skip")


def _hit_targets(layers: int, customdata: list[list[int | str]], hovertemplate: str) -> go.Scatter:
    """Return the invisible marks that a person hits; `customdata` is [[start, n, words ...], ...].

    It goes out as lists (a numeric array would come back from the browser as an object); wrapped in an array of objects
    Plotly does not check thousands of rows word by word. All points answer the mouse, and only one is drawn: a deep map
    has thousands, and drawing what nobody sees took most of the time of a click.
    """
    invisible = {"marker": {"opacity": 0}}
    wrapped = np.empty((len(customdata), len(customdata[0]) if customdata else 0), dtype=object)
    wrapped[:] = customdata
    size = _mark_size(layers, 4, 12)
    return go.Scatter(
        mode="markers",
        x=[row[0] for row in customdata],
        y=[row[1] for row in customdata],
        customdata=wrapped,
        hovertemplate=hovertemplate,
        marker={"symbol": "square", "size": size, "opacity": 0, "color": NEUTRAL, "maxdisplayed": 1},
        selected=invisible,
        unselected=invisible,
        name="blocks",
    )


def _ticks(first: int, last: int) -> list[int]:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if (last - first) / s <= 16)
    return sorted({first, *(v for v in range(first, last + 1) if v % step == 0)})


def _lay_out_map(figure: go.Figure, layers: int, key: list[str], *, dark: bool, selected: Block | None) -> go.Figure:
    """Give the figure the axes and the mouse of a map, say what its marks mean, and outline the chosen block."""
    ticks = {"showgrid": False, "ticks": "outside", "tickcolor": text_colour(dark)}
    lay_out(
        figure,
        dark,
        "start layer (first layer removed)",
        "n (layers removed)",
        height=max(_MIN_HEIGHT, _CELL_HEIGHT * layers),
        margin={"l": 48, "r": 88, "t": 8, "b": 44, "autoexpand": False},
        hoverdistance=-1,
        uirevision="map",
        xaxis={**ticks, "range": [-0.5, layers - 0.5], "tickvals": _ticks(0, layers - 1)},
        yaxis={**ticks, "range": [0.5, layers + 0.5], "tickvals": _ticks(1, layers)},
        showlegend=False,
    )
    # Words and signs in the empty half, because a legend would copy one cell's ink.
    corner = {"x": 1, "y": 1, "xref": "paper", "yref": "paper", "xanchor": "right", "yanchor": "top"}
    figure.add_annotation(text="<br>".join(key), align="left", showarrow=False, **corner)
    if selected is not None:
        x, y = selected.start, selected.n
        for colour, width in (("#ffffff", 5), (CHOSEN, 2.5)):  # two tones: seen on any cell and on any page
            place = {"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
            figure.add_shape(type="rect", layer="above", line={"color": colour, "width": width}, **place)
    return figure


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
    Raises RunError where the criterion was not measured.
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
            _heatmap(layers, colour, palette, (low, high), _bar_words(criterion, view, (low, high))),
            _heatmap(layers, flat, [[0.0, NEUTRAL], [1.0, NEUTRAL]], (0.0, 1.0)),
            _best_rings({} if view.scale == "difference" else best_starts(grid, model), layers),
            _cannot_marks(model, layers, shade),
            _sink_marks(distances, grid, model, shade),
            _hit_targets(layers, hover_rows(distances, criterion, model), hover_template(criterion, grid.samples)),
        ]
    )
    key = ["○  best start of its row", "□  chosen block", "∕  cannot be exported"]
    key += ["~  removes a sink layer"] if distances.norms.sink_layers else []
    return _lay_out_map(figure, layers, key, dark=view.dark, selected=view.selected)


def _limits(grid: Grid, criterion: str, scale: Scale) -> tuple[float, float]:
    if scale == "difference":
        return -1.0, 1.0
    return (0.0, 1.0) if scale == "per_n" else raw_range(grid, criterion)


def _bar_words(criterion: str, view: MapView, limits: tuple[float, float]) -> str:
    unit = f", {units(criterion)}" if units(criterion) else ""
    words = {
        "raw": f"{unit}, {limits[0]:g} to {limits[1]:g}",
        "per_n": ", rescaled per n: 0 = best",
        "difference": ": rank minus measured rank; red: worse than predicted",
    }[view.scale]
    return label(criterion) + words


def _best_rings(best: Mapping[int, int], layers: int) -> go.Scatter:
    # White with a dark rim: seen on the light and on the dark end of both palettes.
    rim = {"color": "#ffffff", "line": {"width": 1.5, "color": "#000000"}}
    marker = {"symbol": "circle", "size": _mark_size(layers, 3.5, 9), **rim}
    return _marks(((start, n) for n, start in best.items()), "best start of its row", marker)


def _ink(shade: Floats, places: list[tuple[int, int]]) -> list[str]:
    return ["#000000" if shade[n - 1, start] < 0.55 else "#ffffff" for start, n in places]


def _cannot_marks(model: ModelInfo, layers: int, shade: Floats) -> go.Scatter:
    places = [(start, n) for start, n, _ in model.illegal if 0 < n < layers and start + n <= layers] + [(0, layers)]
    ink = _ink(shade, places)
    marker = {"symbol": "line-ne-open", "size": _mark_size(layers, 4, 14), "color": ink}
    return _marks(places, "cannot be exported", {**marker, "line": {"width": 2, "color": ink}})


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
        textfont={"size": _mark_size(grid.num_layers, 8, 12), "color": ink},
        selected={"textfont": {"color": "#000000"}},  # without it a click elsewhere would fade the marks
        name="removes a sink layer",
        hoverinfo="skip",
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
    other_name = names[1] if len(names[1]) <= _NAME_LENGTH else f"{names[1][: _NAME_LENGTH - 1]}…"
    scale = "per n" if per_n else f"{units(criterion) or 'units of the criterion'}, ±{limit:.3g}"
    bar = f"difference, {scale}; red: higher on {escape(other_name)}"
    figure = go.Figure(
        [
            _heatmap(layers, found.mean, PALETTE, (-limit, limit), bar),
            _best(one, model, "circle-open", names[0]),
            _best(other, model, "diamond-open", names[1]),
            _hit_targets(layers, _hover_rows(one, other, found), _hover(criterion, names, per_n=per_n)),
        ]
    )
    key = [f"○  best start on {escape(names[0])}", f"◇  best start on {escape(names[1])}", "□  chosen block"]
    return _lay_out_map(figure, layers, key, dark=dark, selected=selected)


def difference_alt(
    one: Grid, other: Grid, model: ModelInfo, *, criterion: str, names: tuple[str, str] = ("A", "B")
) -> str:
    """Return the finding of the difference map in two sentences."""
    return f"{names[1]} minus {names[0]} by {label(criterion)}. {shift_words(start_shifts(one, other, model))}"


def _limit(found: Grid) -> float:
    """Return the end of the colour scale, the same on both sides: the largest difference, or 1 where there is none."""
    known = np.abs(found.mean[np.isfinite(found.mean)])
    return float(known.max()) if known.size and known.max() > 0 else 1.0


def _best(grid: Grid, model: ModelInfo, symbol: str, name: str) -> go.Scatter:
    size = _mark_size(grid.num_layers, 4, 11) - 2 * (symbol != "circle-open")
    places = ((start, n) for n, start in best_starts(grid, model).items())
    return _marks(places, f"best start on {name}", {"symbol": symbol, "size": size, "color": "#000000"})


def _hover(criterion: str, names: tuple[str, str], *, per_n: bool) -> str:
    one, other = map(escape, names)
    scaled = " (rows rescaled to 0 .. 1)" if per_n else ""
    return (
        f"{HOVER_BLOCK}{escape(label(criterion))}<br>{one}: %{{customdata[3]}}<br>{other}: %{{customdata[4]}}<br>"
        f"difference %{{customdata[5]}}{scaled}<extra></extra>"
    )


def _hover_rows(one: Grid, other: Grid, found: Grid) -> list[list[int | str]]:
    ranks = [row_ranks(grid) for grid in (one, other)]
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


def _signed(value: float, error: float) -> str:
    if math.isnan(value):
        return "not known"
    certain = "" if math.isnan(error) else (", within two errors" if abs(value) <= 2 * error else "")
    return with_error(value, error, sign=True) + certain
