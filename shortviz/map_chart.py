"""The triangular map of a criterion over all blocks, as a Plotly figure.

A click on a Plotly heatmap never reaches Streamlit 1.67 (streamlit issue #8760, open), so the heatmaps carry colour
only and an invisible scatter on top is what a person hits: hoverdistance -1 makes the nearest cell answer anywhere.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from shortviz.map_cells import (
    best_starts,
    cells,
    grid_of,
    hover_rows,
    hover_template,
    label,
    raw_range,
    rescale_rows,
    units,
)
from shortviz.records import Block, BlockDistances, Floats, Grid, ModelInfo

Scale = Literal["per_n", "raw", "difference"]
NEUTRAL = "#9e9e9e"
_MIN_HEIGHT, _CELL_HEIGHT = 420, 12
_PALETTES = {"cividis": "cividis_r", "viridis": "viridis_r"}
_NO_HOVER = {"hoverinfo": "skip"}


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
    low, high = _limits(grid, criterion, view.scale)
    colour = scaled if view.scale == "per_n" else grid.mean
    palette = "RdBu" if view.scale == "difference" else _PALETTES[view.palette]
    flat = np.where(np.isnan(colour) & ~np.isnan(grid.mean), 0.0, np.nan)
    shade = np.nan_to_num((colour - low) / (high - low), nan=0.3)
    figure = go.Figure(
        [
            _heatmap(layers, colour, palette, (low, high), _bar(criterion, grid, view, (low, high))),
            _heatmap(layers, flat, [[0.0, NEUTRAL], [1.0, NEUTRAL]], (0.0, 1.0), None),
            _best_rings(grid, model, visible=view.scale != "difference"),
            _cannot_marks(model, layers, shade),
            _sink_marks(distances, grid, model, shade),
            _hit_targets(distances, criterion, model),
        ]
    )
    _lay_out(figure, layers, view)
    _add_key(figure, view, sinks=bool(distances.norms.sink_layers))
    return figure


def _limits(grid: Grid, criterion: str, scale: Scale) -> tuple[float, float]:
    if scale == "difference":
        return -1.0, 1.0
    return (0.0, 1.0) if scale == "per_n" else raw_range(grid, criterion)


def text_colour(dark: bool) -> str:
    """Return the colour of words on a transparent chart."""
    return "#fafafa" if dark else "#31333f"


def _heatmap(layers: int, z: Floats, scale: Any, limits: tuple[float, float], bar: dict[str, Any] | None) -> go.Heatmap:
    gap = 1 if layers <= 64 else 0
    return go.Heatmap(
        x=list(range(layers)),
        y=list(range(1, layers + 1)),
        z=[[None if math.isnan(v) else v for v in row] for row in np.round(z, 5).tolist()],
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


def _size(layers: int, smallest: float, largest: float) -> float:
    return min(max(280.0 / layers, smallest), largest)


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
            "size": _size(grid.num_layers, 3.5, 9),
            "color": "#ffffff",
            "line": {"width": 1.5, "color": "#000000"},
        },
        unselected={"marker": {"opacity": 1}},
        **_NO_HOVER,
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
            "size": _size(layers, 4, 14),
            "color": ink,
            "line": {"width": 2, "color": ink},
        },
        unselected={"marker": {"opacity": 1}},
        **_NO_HOVER,
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
        textfont={"size": _size(grid.num_layers, 8, 12), "color": ink},
        selected={"textfont": {"color": "#000000"}},  # without it a click elsewhere would fade the marks
        name="removes a sink layer",
        **_NO_HOVER,
    )


def _hit_targets(distances: BlockDistances, criterion: str, model: ModelInfo) -> go.Scatter:
    grid = grid_of(distances, criterion)
    customdata = hover_rows(distances, criterion, model)
    invisible = {"marker": {"opacity": 0}}
    return go.Scatter(
        mode="markers",
        x=[row[0] for row in customdata],
        y=[row[1] for row in customdata],
        customdata=customdata,
        hovertemplate=hover_template(criterion, grid.samples),
        marker={"symbol": "square", "size": _size(grid.num_layers, 4, 12), "opacity": 0, "color": NEUTRAL},
        selected=invisible,
        unselected=invisible,
        name="blocks",
    )


def _ticks(first: int, last: int) -> list[int]:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if (last - first) / s <= 16)
    return sorted({first, *(v for v in range(first, last + 1) if v % step == 0)})


def _lay_out(figure: go.Figure, layers: int, view: MapView) -> None:
    ink = text_colour(view.dark)
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
    if view.selected is not None:
        _outline(figure, view.selected)


def _add_key(figure: go.Figure, view: MapView, *, sinks: bool) -> None:
    """Say in the empty half what the marks mean; words and signs, because a legend would copy one cell's ink."""
    lines = ["○  best start of its row", "□  chosen block", "∕  cannot be exported"]
    if sinks:
        lines.append("~  removes a sink layer")
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
        font={"color": text_colour(view.dark), "size": 12},
    )


def _outline(figure: go.Figure, block: Block) -> None:
    place = {"x0": block.start - 0.5, "x1": block.start + 0.5, "y0": block.n - 0.5, "y1": block.n + 0.5}
    for colour, width in (("#ffffff", 5), ("#d5006d", 2.5)):  # two tones: seen on any cell and on any page
        figure.add_shape(type="rect", layer="above", line={"color": colour, "width": width}, **place)
