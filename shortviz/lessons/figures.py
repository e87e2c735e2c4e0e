"""Pictures of single states for the lessons, the findings they show as sentences, and the looks all lessons share."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from shortviz.analysis.curve import RemovalCurve
from shortviz.figures.theme import CHOSEN as PINK
from shortviz.figures.theme import PAGE_FONT, error_bars, lay_out, text_colour
from shortviz.lessons.data import KINDS, LessonData, PositionAngles, Sentence
from shortviz.records.formatting import layer_words, layers_text, percent, with_error
from shortviz.records.ledger import Ledger
from shortviz.records.plan import Block

BLUE, ORANGE, GREEN = "#3d85c6", "#d9822b", "#0f9d73"
TERMS = {"blue": (BLUE, "#2b6aa3", "#7ab8f0"), "orange": (ORANGE, "#9c560c", "#f0ab62")}
"""By name in a lesson's words: a line's colour, and that of its term in a formula on a light and a dark page."""
HEIGHT = 400
LOOKS: dict[str, Any] = {
    "height": HEIGHT,
    "margin": {"l": 60, "r": 12, "t": 30, "b": 48},
    "font_family": PAGE_FONT,
    "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
    "bargap": 0.35,
    "uirevision": "lesson",
}


def stream_figure(norms: Sequence[float], updates: Sequence[float], *, dark: bool = False) -> go.Figure:
    """Return the norm of the state at every boundary as a line, and of what every layer adds to it as points."""
    layers = len(updates)
    figure = go.Figure(
        [
            go.Scatter(  # no bars: a log axis has no zero for them to stand on
                x=[i + 0.5 for i in range(layers)],
                y=list(updates),
                customdata=[[i] for i in range(layers)],
                name="what a layer adds",
                mode="markers",
                marker={"color": ORANGE, "symbol": "diamond", "size": 9},
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
    lay_out(figure, dark, "boundary i enters layer i; a diamond is a layer", "Euclidean norm, log axis", **LOOKS)
    return figure.update_yaxes(type="log", dtick=1)


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
            line={"color": text_colour(dark), "dash": "dot", "width": 1.5},
            showlegend=False,
            hoverinfo="skip",
        )
    )
    figure.add_annotation(
        x=1.3 * radius * math.cos(theta / 2),
        y=1.3 * radius * math.sin(theta / 2),
        text=f"{theta / math.pi:.3f} π",
        showarrow=False,
        font={"size": 14},
    )
    lay_out(figure, dark, "along the first state", "across it", **LOOKS)
    return figure.update_yaxes(scaleanchor="x", scaleratio=1)


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
            error_y=error_bars((error for _, error in at), thickness=1.5, width=4),
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
    axes = ("position in the row, from 0; the star is the last token", "angle over the block, of π")
    lay_out(figure, dark, *axes, **LOOKS)
    return figure.update_layout(showlegend=False, xaxis_type="category", yaxis_rangemode="tozero")


def positions_alt(positions: Sequence[PositionAngles], block: Block) -> str:
    """Return how the angle depends on the position, in words."""
    words = [f"{with_error(*p.grid.at(block))} at {p.words}" for p in (positions[0], positions[3], positions[-1])]
    return (
        f"The angle over {layer_words(block.start, block.n)} by position: {', '.join(words)}, which is the last token."
    )


KIND_COLOURS = {"fact": BLUE, "copy": GREEN, "arithmetic": ORANGE, "reasoning": PINK}
KIND_SYMBOLS = {"fact": "circle", "copy": "diamond", "arithmetic": "square", "reasoning": "cross"}
_STEP_COLOURS = {"uncut": BLUE, "cut": ORANGE, "repaired": GREEN, "healed": PINK}


def curve_figure(data: LessonData, curve: RemovalCurve, chosen: int, *, dark: bool = False) -> go.Figure:
    """Return, above, the share of questions answered rightly and, below, the loss, both against layers removed."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.5, 0.5])
    cut = data.cuts
    for kind in KINDS:
        right = [data.right(answers, kind) for answers in cut]
        figure.add_trace(
            go.Scatter(
                x=[len(a.removed) for a in cut],
                y=[100 * one / of for one, of in right],
                error_y=error_bars((100 * math.sqrt(one / of * (1 - one / of) / of) for one, of in right), thickness=1),
                text=[f"{one} of {of}" for one, of in right],
                name=kind,
                mode="lines+markers",
                line={"color": KIND_COLOURS[kind], "width": 2},
                marker={"symbol": KIND_SYMBOLS[kind], "size": 8},
                hovertemplate=f"{kind}, %{{x}} layers removed: %{{text}} right<extra></extra>",
            ),
            row=1,
            col=1,
        )
    deepest = max(len(a.removed) for a in cut)
    points = [p for line in curve.lines if line.strategy == "best measured" for p in line.points if p.n <= deepest]
    figure.add_trace(
        go.Scatter(
            x=[p.n for p in points],
            y=[p.nll for p in points],
            error_y=error_bars(p.stderr for p in points),
            text=["uncut" if not p.removed else f"without {layer_words(p.removed[0], p.n)}" for p in points],
            name="loss",
            mode="lines+markers",
            line={"color": text_colour(dark), "width": 2},
            hovertemplate="%{text}: %{y:.3f} nats per token<extra></extra>",
        ),
        row=2,
        col=1,
    )
    lay_out(
        figure,
        dark,
        **LOOKS,
        xaxis2_title_text="layers removed, at the lowest measured loss",
        yaxis={"title_text": "right, %", "range": [-4, 104]},
        yaxis2_title_text="NLL, nats per token",
    )
    for row in (1, 2):
        figure.add_vline(x=chosen, line={"color": PINK, "dash": "dot", "width": 2}, row=row, col=1)
    return figure


def curve_alt(data: LessonData) -> str:
    """Return how the right answers go down with the layers, in words."""
    cut = data.cuts
    found = []
    for kind in KINDS:
        right = ", ".join(f"{data.right(a, kind)[0]}" for a in cut)
        found.append(f"{kind} {right} of {data.right(cut[0], kind)[1]}")
    sizes = ", ".join(str(len(a.removed)) for a in cut)
    return f"Questions answered rightly with {sizes} layers removed: {'; '.join(found)}."


def answers_figure(data: LessonData, kind: str, *, dark: bool = False) -> go.Figure:
    """Return a table of marks: a question a row, a model a column, a disc where the answer is right."""
    rows = [i for i, q in enumerate(data.questions) if q.kind == kind]
    columns = [a.label.replace(" ", "<br>") for a in data.answers]
    right = [[data.questions[i].right(a.written[i]) for a in data.answers] for i in rows]
    cells = [(r, c) for r in range(len(rows)) for c in range(len(columns))]
    ink = text_colour(dark)
    marks = [right[r][c] for r, c in cells]
    figure = go.Figure(
        go.Scatter(
            mode="markers",
            x=[columns[c] for _, c in cells],
            y=[r + 1 for r, _ in cells],
            customdata=[[rows[r], c] for r, c in cells],
            text=["right" if mark else "wrong" for mark in marks],
            hovertemplate="question %{y}, %{x}: %{text}<extra></extra>",
            marker={
                "size": [15 if mark else 9 for mark in marks],
                "symbol": ["circle" if mark else "x-thin-open" for mark in marks],
                "color": [KIND_COLOURS[kind] if mark else ink for mark in marks],
                "line": {"width": 2, "color": [KIND_COLOURS[kind] if mark else ink for mark in marks]},
            },
        )
    )
    lay_out(figure, dark, "layers removed", "question", **LOOKS)
    figure.update_xaxes(side="top", type="category")
    figure.update_yaxes(autorange="reversed", tickvals=list(range(1, len(rows) + 1)), showgrid=False)
    return figure.update_layout(showlegend=False, margin={"t": 72, "b": 8})


def answers_alt(data: LessonData, kind: str) -> str:
    """Return how many questions of a kind every model gets right."""
    found = [f"{data.right(a, kind)[0]} {'' if not a.removed else 'without '}{a.label}" for a in data.answers]
    return f"Of {data.right(data.answers[0], kind)[1]} {kind} questions are right: {', '.join(found)}."


def ledger_figure(ledger: Ledger, *, dark: bool = False) -> go.Figure:
    """Return the loss after every step of a ledger as bars from the uncut model's loss."""
    steps = ledger.steps
    figure = go.Figure(
        go.Bar(
            x=[s.label.replace(" (", "<br>(").replace(", ", ",<br>") for s in steps],  # fits a phone
            y=[s.evaluation.nll_increase or 0.0 for s in steps],
            error_y=error_bars((s.evaluation.nll_increase_stderr for s in steps), color=text_colour(dark)),
            # Not on the bars: error bars cross them.
            customdata=[with_error(s.evaluation.score.nll, s.evaluation.score.nll_stderr) for s in steps],
            marker={"color": [_STEP_COLOURS[s.name] for s in steps]},
            hovertemplate="%{x}: NLL %{customdata}, %{y:+.3f} nats<extra></extra>",
        )
    )
    lay_out(figure, dark, None, "NLL above the uncut model, nats per token", **LOOKS)
    return figure.update_layout(showlegend=False)


def ledger_alt(ledger: Ledger) -> str:
    """Return what each step of a ledger cost or gave back."""
    found = []
    for step in ledger.steps:
        words = f"{step.label} NLL {with_error(step.evaluation.score.nll, step.evaluation.score.nll_stderr)}"
        found.append(
            words if step.recovered is None else f"{words} ({percent(step.recovered, step.recovered_stderr)} won back)"
        )
    return f"Without layers {layers_text(ledger.removed)}: {', '.join(found)}."
