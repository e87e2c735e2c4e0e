"""Pictures of answers and losses for the lessons, and the findings they show as sentences. No streamlit, no torch."""

import math

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from shortviz.curve import RemovalCurve
from shortviz.ledger import Ledger
from shortviz.lesson_charts import BLUE, GREEN, ORANGE, PINK, lay_out
from shortviz.lesson_data import KINDS, LessonData
from shortviz.map_canvas import text_colour
from shortviz.words import layer_words, layers_text, percent, with_error

KIND_COLOURS = {"fact": BLUE, "copy": GREEN, "arithmetic": ORANGE, "reasoning": PINK}
KIND_SYMBOLS = {"fact": "circle", "copy": "diamond", "arithmetic": "square", "reasoning": "cross"}
_STEP_COLOURS = {"uncut": BLUE, "cut": ORANGE, "repaired": GREEN, "healed": PINK}
_STEP_PATTERNS = {"uncut": "", "cut": "/", "repaired": "x", "healed": "."}


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
            error_y={"type": "data", "array": [0 if math.isnan(p.stderr) else p.stderr for p in points]},
            text=["uncut" if not p.removed else f"without {layer_words(p.removed[0], p.n)}" for p in points],
            name="loss",
            mode="lines+markers",
            line={"color": text_colour(dark), "width": 2},
            hovertemplate="%{text}: %{y:.3f} nats per token<extra></extra>",
        ),
        row=2,
        col=1,
    )
    lay_out(figure, "", "", dark)
    ink = text_colour(dark)
    figure.update_xaxes(title={"text": "layers removed, at the lowest measured loss", "font": {"color": ink}}, row=2)
    figure.update_yaxes(title={"text": "right, %", "font": {"color": ink}}, range=[-4, 104], row=1)
    figure.update_yaxes(title={"text": "NLL, nats per token", "font": {"color": ink}}, row=2)
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
    lay_out(figure, "layers removed", "question", dark)
    figure.update_xaxes(side="top", type="category")
    figure.update_yaxes(autorange="reversed", tickvals=list(range(1, len(rows) + 1)), showgrid=False)
    figure.update_layout(showlegend=False, margin={"t": 72, "b": 8})
    return figure


def answers_alt(data: LessonData, kind: str) -> str:
    """Return how many questions of a kind every model gets right."""
    found = [f"{data.right(a, kind)[0]} {'' if not a.removed else 'without '}{a.label}" for a in data.answers]
    return f"Of {data.right(data.answers[0], kind)[1]} {kind} questions are right: {', '.join(found)}."


def ledger_figure(ledger: Ledger, *, dark: bool = False) -> go.Figure:
    """Return the loss after every step of a ledger as bars from the uncut model's loss."""
    steps = ledger.steps
    errors = [s.evaluation.nll_increase_stderr or 0.0 for s in steps]
    figure = go.Figure(
        go.Bar(
            x=[s.label.replace(" (", "<br>(").replace(", ", ",<br>") for s in steps],  # fits a phone
            y=[s.evaluation.nll_increase or 0.0 for s in steps],
            error_y={
                "type": "data",
                "array": [0.0 if math.isnan(e) else e for e in errors],
                "color": text_colour(dark),
            },
            customdata=[
                with_error(s.evaluation.score.nll, s.evaluation.score.nll_stderr) for s in steps
            ],  # not on the bars: error bars cross them
            marker={
                "color": [_STEP_COLOURS[s.name] for s in steps],
                "pattern": {"shape": [_STEP_PATTERNS[s.name] for s in steps]},
            },
            hovertemplate="%{x}: NLL %{customdata}, %{y:+.3f} nats<extra></extra>",
        )
    )
    lay_out(figure, "", "NLL above the uncut model, nats per token", dark)
    figure.update_layout(showlegend=False)
    return figure


def ledger_alt(ledger: Ledger) -> str:
    """Return what each step of a ledger cost or gave back."""
    found = []
    for step in ledger.steps:
        words = f"{step.label} NLL {with_error(step.evaluation.score.nll, step.evaluation.score.nll_stderr)}"
        found.append(
            words if step.recovered is None else f"{words} ({percent(step.recovered, step.recovered_stderr)} won back)"
        )
    return f"Without layers {layers_text(ledger.removed)}: {', '.join(found)}."
