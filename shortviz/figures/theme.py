"""What all charts look like: transparent, words in the page's colour, axes that stay where they are."""

import math
from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

CHOSEN = "#d5006d"
"""The colour of what a person has chosen, and of the best."""


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
