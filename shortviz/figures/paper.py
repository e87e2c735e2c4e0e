"""A figure as a paper prints it: white, dark words, and cells that stay sharp at any size. No streamlit, no torch."""

from typing import Any

import plotly.graph_objects as go
from plotly.colors import get_colorscale, sample_colorscale

WIDTH, HEIGHT = 900, 640
"""Pixels at scale 1; a PNG is saved at four times that."""
FONT = "Arial, Helvetica, sans-serif"
_GAP = 0.03
"""Of a cell, left free on each side."""


def paper_figure(figure: go.Figure) -> go.Figure:
    """Return a copy for print: fixed size, white ground, black words, the cells of a map as shapes.

    Plotly writes a heatmap into an SVG as a picture of pixels; shapes stay vectors.
    """
    copy = go.Figure(figure)
    cells = [shape for trace in copy.data if isinstance(trace, go.Heatmap) for shape in _cells(trace)]
    copy.update_layout(
        width=WIDTH,
        height=HEIGHT,
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        font={"family": FONT, "size": 14, "color": "#000000"},
        margin={"l": 72, "b": 64, "t": 16},
    )
    copy.layout.shapes = [*cells, *copy.layout.shapes]  # set: an update would merge them one into another
    if cells:
        for trace in copy.data:
            if isinstance(trace, go.Heatmap):
                trace.update(opacity=0)  # its colour bar stays
    return copy


def image_options(name: str, kind: str) -> dict[str, Any]:
    """Return the options of Plotly's own export, which runs in the browser: SVG, or PNG at four times the size."""
    scale = 4 if kind == "png" else 1
    return {"format": kind, "filename": name, "width": WIDTH, "height": HEIGHT, "scale": scale}


def _cells(trace: go.Heatmap) -> list[dict[str, Any]]:
    scale = get_colorscale(trace.colorscale) if isinstance(trace.colorscale, str) else [*map(list, trace.colorscale)]
    spread = trace.zmax - trace.zmin
    found = []
    for y, row in zip(trace.y, trace.z, strict=True):
        for x, value in zip(trace.x, row, strict=True):
            if value is None or value != value:
                continue
            place = min(max((value - trace.zmin) / spread, 0.0), 1.0) if spread else 0.5
            found.append(_cell(x, y, sample_colorscale(scale, place)[0]))
    return found


def _cell(x: float, y: float, colour: str) -> dict[str, Any]:
    half = 0.5 - _GAP
    return {
        "type": "rect",
        "x0": x - half,
        "x1": x + half,
        "y0": y - half,
        "y1": y + half,
        "fillcolor": colour,
        "line": {"width": 0},
        "layer": "below",
    }
