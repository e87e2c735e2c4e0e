"""Records as Plotly figures, tables and words. No streamlit, no torch."""

import plotly.graph_objects as go

from shortviz.difference_chart import difference_alt, difference_figure
from shortviz.map_canvas import text_colour
from shortviz.map_cells import label
from shortviz.map_chart import MapView, Scale, distance_map
from shortviz.map_tables import best_table, map_alt, map_table
from shortviz.records import BoundaryNorms

__all__ = [
    "MapView",
    "Scale",
    "best_table",
    "difference_alt",
    "difference_figure",
    "distance_map",
    "label",
    "map_alt",
    "map_table",
    "norms_figure",
]


def norms_figure(norms: BoundaryNorms, dark: bool = False) -> go.Figure:
    """Return the mean norm of the residual stream at every boundary, position 0 apart from the rest, on a log axis."""
    ink = text_colour(dark)
    boundaries = list(range(norms.first.shape[0]))
    lines = (
        ("position 0", norms.first.tolist(), {"color": "#d9822b", "width": 2}, "circle"),
        ("all other positions", norms.rest.tolist(), {"color": "#4c8bf5", "width": 2, "dash": "dash"}, "square"),
    )
    figure = go.Figure(
        [
            go.Scatter(
                x=boundaries,
                y=values,
                name=name,
                mode="lines+markers",
                line=line,
                marker={"symbol": symbol, "size": 6},
                hovertemplate=f"boundary %{{x}}, {name}: norm %{{y:.4g}}<extra></extra>",
            )
            for name, values, line, symbol in lines
        ]
    )
    for sink in norms.sink_layers:
        figure.add_vline(
            x=sink + 0.5,
            line={"color": ink, "dash": "dot", "width": 1},
            annotation_position="bottom right",
            annotation={"text": f"layer {sink} writes the sink", "font": {"color": ink}},
        )
    axis = {"fixedrange": True, "tickfont": {"color": ink}}
    figure.update_layout(
        height=360,
        margin={"l": 64, "r": 16, "t": 32, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": ink, "size": 12},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "font": {"color": ink}},
        uirevision="norms",
        xaxis={**axis, "title": {"text": "boundary (i enters layer i)", "font": {"color": ink}}, "showgrid": False},
        yaxis={**axis, "title": {"text": "mean norm", "font": {"color": ink}}, "type": "log", "dtick": 1},
    )
    return figure
