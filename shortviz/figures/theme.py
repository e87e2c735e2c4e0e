"""What all charts look like: on a page transparent, with words in its colour; in print white, sharp at any size."""

import math
from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go
from plotly.colors import get_colorscale, sample_colorscale

CHOSEN = "#d5006d"
"""The colour of what a person has chosen, and of the best."""


NEEDED = ["#ffd166", "#b7d27a", "#5fb995", "#2a93a0", "#2b6a94", "#33417a", "#2b1f4f"]
"""The ramp from what can go (gold) to what is needed (indigo), in even steps of lightness; it means nothing else."""
DIFFERENCE = ["#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b"]
"""The ramp of differences: blue below 0, red above (ColorBrewer's RdBu)."""
DIFFERENCE_DARK = ["#67a9cf", "#10161d", "#ef8a62"]
"""The same behind words on a dark page, whose ground is its middle: a text in white boxes would dazzle."""


def text_colour(dark: bool) -> str:
    """Return the colour of words on a transparent chart."""
    return "#fafafa" if dark else "#31333f"


def lay_out(figure: go.Figure, dark: bool, x: str | None = None, y: str | None = None, **layout: Any) -> go.Figure:
    """Give a figure its looks and return it: `x` and `y` are the titles of its axes, `layout` goes to Plotly.

    Words of titles, legends and notes take the colour of the layout's font.
    """
    ink, clear = text_colour(dark), "rgba(0,0,0,0)"
    figure.update_layout(paper_bgcolor=clear, plot_bgcolor=clear, font={"color": ink, "size": 12}, hovermode="closest")
    axis = {"tickfont_color": ink, "fixedrange": True, "zeroline": False, "gridcolor": "rgba(128,128,128,0.2)"}
    figure.update_xaxes(title_text=x, **axis)
    figure.update_yaxes(title_text=y, **axis)
    return figure.update_layout(**layout)


def error_bars(errors: Iterable[float | None], **more: Any) -> dict[str, Any]:
    """Return error bars as Plotly wants them; an error that is not known is drawn as none."""
    known = [0.0 if error is None or math.isnan(error) else error for error in errors]
    return {"type": "data", "array": known, "thickness": 1, "width": 2, **more}


WIDTH, HEIGHT = 900, 640
"""Pixels at scale 1; a PNG is saved at four times that."""
FONT = "Arial, Helvetica, sans-serif"
PAGE_FONT = '"Source Sans", "Source Sans Pro", sans-serif'
"""Of charts in the app, that of the page around them."""
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
        margin={"l": 72, "b": 64, "t": max(16, figure.layout.margin.t or 0)},
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
    spread, half, found = trace.zmax - trace.zmin, 0.5 - _GAP, []
    for y, row in zip(trace.y, trace.z, strict=True):
        for x, value in zip(trace.x, row, strict=True):
            if value is None or value != value:
                continue
            place = min(max((value - trace.zmin) / spread, 0.0), 1.0) if spread else 0.5
            corners = {"x0": x - half, "x1": x + half, "y0": y - half, "y1": y + half}
            fill = {"fillcolor": sample_colorscale(scale, place)[0], "line": {"width": 0}, "layer": "below"}
            found.append({"type": "rect", **corners, **fill})
    return found
