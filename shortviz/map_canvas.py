"""What every map of blocks is drawn on: cells, axes, the outline of the chosen block, invisible hit targets.

A click on a Plotly heatmap never reaches Streamlit 1.67 (streamlit issue #8760, open), so the heatmaps carry colour
only and an invisible scatter on top is what a person hits: hoverdistance -1 makes the nearest cell answer anywhere.
"""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from shortviz.records import Block, Floats

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
