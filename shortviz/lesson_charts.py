"""Pictures of single states for the lessons, the findings they show as sentences, and the looks all lessons share."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from shortviz.lesson_data import PositionAngles, Sentence
from shortviz.map_canvas import text_colour
from shortviz.records import Block, Floats
from shortviz.words import layer_words, with_error

BLUE, ORANGE, GREEN, PINK = "#3d85c6", "#d9822b", "#0f9d73", "#d5006d"
HEIGHT = 400
FONT = '"Source Sans", "Source Sans Pro", sans-serif'


def stream_figure(norms: Sequence[float], updates: Sequence[float], *, dark: bool = False) -> go.Figure:
    """Return the norm of the state at every boundary as a line, and of what every layer adds to it as bars."""
    layers = len(updates)
    figure = go.Figure(
        [
            go.Bar(
                x=[i + 0.5 for i in range(layers)],
                y=list(updates),
                customdata=[[i] for i in range(layers)],
                name="what a layer adds",
                marker={"color": ORANGE, "pattern": {"shape": "/", "solidity": 0.25}},
                hovertemplate="layer %{customdata[0]} adds a vector of norm %{y:,.4g}<extra></extra>",
            ),
            go.Scatter(
                x=list(range(layers + 1)),
                y=list(norms),
                name="the state",
                mode="lines+markers",
                line={"color": BLUE, "width": 2},
                marker={"size": 6},
                hovertemplate="boundary %{x}: norm %{y:,.4g}<extra></extra>",
            ),
        ]
    )
    lay_out(figure, "boundary i enters layer i; a bar is a layer", "Euclidean norm, log axis", dark)
    figure.update_yaxes(type="log", dtick=1)
    return figure


def stream_alt(norms: Sequence[float], updates: Sequence[float]) -> str:
    """Return what the picture of one state shows."""
    largest = max(range(len(updates)), key=lambda i: updates[i])
    inner = sorted(updates[1:-1])[len(updates[1:-1]) // 2]
    return (
        f"The state's norm goes from {norms[0]:,.3g} at boundary 0 to {norms[-1]:,.3g} at boundary {len(norms) - 1}. "
        f"Layer {largest} adds the longest vector, {updates[largest]:,.3g}; half of the inner layers add less than "
        f"{inner:,.3g}."
    )


def angle_figure(sentence: Sentence, block: Block, *, dark: bool = False) -> go.Figure:
    """Return the two states around a block as arrows at their true angle and their true lengths."""
    theta = sentence.angle(block) * math.pi
    before = math.sqrt(float(sentence.gram[block.start, block.start]))
    after = math.sqrt(float(sentence.gram[block.start + block.n, block.start + block.n]))
    ends = {f"boundary {block.start}": (before, 0.0)}
    ends[f"boundary {block.start + block.n}"] = (after * math.cos(theta), after * math.sin(theta))
    ink = text_colour(dark)
    figure = go.Figure()
    for (name, (x, y)), colour in zip(ends.items(), (BLUE, ORANGE), strict=True):
        figure.add_trace(
            go.Scatter(
                x=[0, x],
                y=[0, y],
                name=name,
                mode="lines+markers",
                line={"color": colour, "width": 3},
                marker={"size": [0, 14], "symbol": "arrow", "angleref": "previous", "color": colour},
                hovertemplate=f"{name}: norm {math.hypot(x, y):,.4g}<extra></extra>",
            )
        )
    radius = 0.3 * min(before, after)
    arc = [theta * k / 40 for k in range(41)]
    figure.add_trace(
        go.Scatter(
            x=[radius * math.cos(a) for a in arc],
            y=[radius * math.sin(a) for a in arc],
            mode="lines",
            line={"color": ink, "dash": "dot", "width": 1.5},
            showlegend=False,
            hoverinfo="skip",
        )
    )
    figure.add_annotation(
        x=1.3 * radius * math.cos(theta / 2),
        y=1.3 * radius * math.sin(theta / 2),
        text=f"{theta / math.pi:.3f} π",
        showarrow=False,
        font={"color": ink, "size": 14},
    )
    lay_out(figure, "along the first state", "across it", dark)
    figure.update_yaxes(scaleanchor="x", scaleratio=1)
    return figure


def angle_alt(sentence: Sentence, block: Block) -> str:
    """Return the angle of the picture in words."""
    angle = sentence.angle(block)
    return (
        f"The last token's states at boundary {block.start} and boundary {block.start + block.n} stand at "
        f"{angle:.4f} π, which is {180 * angle:.1f} degrees: {layer_words(block.start, block.n)} turned the state that "
        "far."
    )


def positions_figure(positions: Sequence[PositionAngles], block: Block, *, dark: bool = False) -> go.Figure:
    """Return the angle over a block against the token's position in its row."""
    at = [p.grid.at(block) for p in positions]
    last = len(at) - 1
    figure = go.Figure(
        go.Scatter(
            x=[p.words for p in positions],
            y=[value for value, _ in at],
            error_y={"type": "data", "array": [error for _, error in at], "thickness": 1.5, "width": 4},
            mode="lines+markers",
            line={"color": BLUE, "width": 2},
            marker={
                "size": [11 if k == last else 7 for k in range(len(at))],
                "symbol": ["star" if k == last else "circle" for k in range(len(at))],
                "color": [PINK if k == last else BLUE for k in range(len(at))],
            },
            hovertemplate="positions %{x}: %{y:.4f} of π<extra></extra>",
        )
    )
    lay_out(figure, "position in the row, from 0; the star is the last token", "angle over the block, of π", dark)
    figure.update_xaxes(type="category")
    figure.update_layout(showlegend=False)
    figure.update_yaxes(rangemode="tozero")
    return figure


def positions_alt(positions: Sequence[PositionAngles], block: Block) -> str:
    """Return how the angle depends on the position, in words."""
    words = [f"{with_error(*p.grid.at(block))} at {p.words}" for p in (positions[0], positions[3], positions[-1])]
    return (
        f"The angle over {layer_words(block.start, block.n)} by position: {', '.join(words)}, which is the last token."
    )


def lay_out(figure: go.Figure, x: str, y: str, dark: bool) -> go.Figure:
    """Give a lesson's figure its common looks."""
    ink = text_colour(dark)
    axis: dict[str, Any] = {"fixedrange": True, "tickfont": {"color": ink}, "zeroline": False}
    axis |= {"gridcolor": "rgba(128,128,128,0.25)"}
    figure.update_layout(
        height=HEIGHT,
        margin={"l": 60, "r": 12, "t": 30, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": ink, "size": 12, "family": FONT},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "font": {"color": ink}},
        hovermode="closest",
        bargap=0.35,
        uirevision="lesson",
    )
    figure.update_xaxes(title={"text": x, "font": {"color": ink}}, **axis)
    figure.update_yaxes(title={"text": y, "font": {"color": ink}}, **axis)
    return figure


def as_list(values: Floats) -> list[float]:
    """Return an array as Python floats."""
    return [float(v) for v in values]
