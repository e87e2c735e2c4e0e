"""The triangular map of a criterion over all blocks, as a Plotly figure."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from shortviz.map_canvas import NEUTRAL, NO_HOVER, add_key, heatmap, hit_targets, lay_out_map, mark_size
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
