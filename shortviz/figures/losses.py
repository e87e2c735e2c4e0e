"""Figures over measured losses: predicted beside measured, regret, the removal curve. No streamlit, no torch."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from shortviz import criteria
from shortviz.analysis.agreement import Agreement
from shortviz.analysis.curve import AccuracyLine, RemovalCurve
from shortviz.analysis.planning import cells
from shortviz.criteria.base import MEASURED
from shortviz.figures.theme import CHOSEN, error_bars, lay_out, text_colour
from shortviz.records.formatting import counted, layer_words, layers_text, percent, with_error
from shortviz.records.measured import BlockDistances, BlockLosses, Grid
from shortviz.records.plan import Block
from shortviz.records.text import TaskScore

TOP_NATS = 10.0
"""Where the y axes end: a model 10 nats worse is broken, and showing how much would flatten everything else."""

_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#8c8c8c",
    "#7a4fbf",
    "#b0a000",
    "#e15759",
)
_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "pentagon", "hourglass", "star-diamond")
_GLYPHS = "●■◆✚▲✖★⬟⧗✦"
"""The symbols as characters, for a table that is the key of a chart too small for a legend."""
_MARGIN = {"l": 60, "r": 16, "t": 12, "b": 48}
_LOOKS: dict[str, Any] = {"height": 440, "margin": _MARGIN, "uirevision": "losses", "showlegend": True}
_WITH_KEY = _LOOKS | {"height": 560, "legend": {"orientation": "h", "x": 0, "y": -0.19, "yanchor": "top"}}
"""With the legend where up to ten lines cover neither a line nor, on a phone, the title of the axis."""


def agreement_figure(
    distances: BlockDistances, losses: BlockLosses, criterion: str, selected: Block | None = None, dark: bool = False
) -> go.Figure:
    """Return predicted against measured: one point a block, coloured by n, the chosen block ringed.

    `customdata` of the points is [start, n, words], as on the map, so that a click chooses the block.
    """
    grid = distances.criteria[criterion]
    points = [
        (start, n)
        for start, n in cells(losses.num_layers)
        if n < losses.num_layers and math.isfinite(losses.increase.mean[n - 1, start] + grid.mean[n - 1, start])
    ]
    figure = go.Figure(
        go.Scatter(
            mode="markers",
            x=[float(grid.mean[n - 1, start]) for start, n in points],
            y=[float(losses.increase.mean[n - 1, start]) for start, n in points],
            customdata=[[start, n, layer_words(start, n)] for start, n in points],
            hovertemplate="<b>%{customdata[2]}</b><br>predicted %{x:.4g}, measured %{y:+.4g} nats<extra></extra>",
            marker={
                "size": 8,
                "color": [n for _, n in points],
                "colorscale": "Cividis",
                "colorbar": {"title": {"text": "n", "side": "right"}, "thickness": 12},
                "line": {"width": 0.5, "color": "#ffffff"},
            },
        )
    )
    if selected is not None and (selected.start, selected.n) in points:
        x, y = grid.at(selected)[0], losses.increase.at(selected)[0]
        ring = {"symbol": "circle-open", "size": 15, "color": CHOSEN, "line": {"width": 2.5}}
        figure.add_trace(go.Scatter(mode="markers", x=[x], y=[y], marker=ring, hoverinfo="skip", showlegend=False))
    axes = (f"predicted: {criteria.label(criterion)}", f"{MEASURED['nll_increase']}, nats")
    lay_out(figure, dark, *axes, **_LOOKS)
    return figure.update_layout(margin_r=80, yaxis_range=[-0.5, TOP_NATS], showlegend=False)


def regret_figure(found: tuple[Agreement, ...], dark: bool = False) -> go.Figure:
    """Return the regret of every criterion against n: what it costs in nats to take the block it calls best."""
    figure = go.Figure()
    for index, one in enumerate(found):
        figure.add_trace(
            _line(
                index,
                criteria.label(one.criterion),
                [r.n for r in one.regrets],
                [r.nats for r in one.regrets],
                [min(r.stderr, TOP_NATS) for r in one.regrets],
                [f"picks {layer_words(r.picked, r.n)}, best {layer_words(r.best, r.n)}" for r in one.regrets],
            )
        )
    legend = {"x": 0.01, "y": 0.99, "bgcolor": "rgba(0,0,0,0)", "font_size": 11}
    lay_out(figure, dark, "n (layers removed)", "regret, nats", **_LOOKS, legend=legend)
    return figure.update_yaxes(range=[-0.3, TOP_NATS])


def curve_figure(curve: RemovalCurve, *, perplexity: bool = False, top: float = 0.0, dark: bool = False) -> go.Figure:
    """Return loss (or perplexity, on a log axis) against layers removed, a line for each strategy.

    `top` cuts the y axis off there where the deep end would flatten everything; 0 shows all.
    """
    figure = go.Figure()
    for index, line in enumerate(curve.lines):
        values = [p.perplexity if perplexity else p.nll for p in line.points]
        spread = line.strategy == "random"  # between blocks, not an error: told in the tooltip
        errors = [0.0 if spread else p.stderr * (p.perplexity if perplexity else 1.0) for p in line.points]
        words = [
            f"mean over all blocks of this size, spread {p.stderr:.2g} nats"
            if spread and p.n
            else _cut_words(p.removed)
            for p in line.points
        ]
        figure.add_trace(_line(index, line.label, [p.n for p in line.points], values, errors, words))
    lay_out(figure, dark, "layers removed", "perplexity" if perplexity else "NLL, nats per token", **_WITH_KEY)
    if perplexity:
        figure.update_yaxes(type="log")
    elif top > 0:
        figure.update_yaxes(range=[curve.base_nll - 0.05 * (top - curve.base_nll), top])
    return figure


def accuracy_figure(lines: Sequence[AccuracyLine], *, dark: bool = False) -> go.Figure:
    """Return accuracy in per cent against layers removed, a line for each strategy, with chance and majority.

    Errors are binomial.
    """
    figure = go.Figure()
    for index, line in enumerate(lines):
        scores = [score for _, score in line.points]
        values = [100 * s.accuracy for s in scores]
        errors = [100 * s.accuracy_stderr for s in scores]
        words = [f"{_cut_words(s.removed)}, {s.questions} questions" for s in scores]
        figure.add_trace(_line(index, line.label, [n for n, _ in line.points], values, errors, words))
    score = lines[0].points[0][1]
    for value, name in ((score.chance, "chance"), (score.majority, "always the most frequent label")):
        figure.add_hline(
            y=100 * value,
            line={"color": text_colour(dark), "dash": "dot", "width": 1},
            annotation={"text": f"{name}, {percent(value)}", "font": {"size": 11}},
            annotation_position="bottom right" if name == "chance" else "top right",
        )
    lay_out(figure, dark, "layers removed", "questions answered rightly, %", **_WITH_KEY, yaxis_range=[0, 100])
    if max(n for line in lines for n, _ in line.points) <= 16:
        figure.update_xaxes(dtick=1)
    return figure


def accuracy_alt(lines: Sequence[AccuracyLine]) -> str:
    """Return the finding: the uncut model's accuracy, and that of each strategy's largest scored cut."""
    first = lines[0].points[0][1]
    found = []
    for line in lines:
        n, score = line.points[-1]
        found.append(f"{line.label}: {accuracy_words(score)} without {n} layers")
    uncut = next((s for line in lines for n, s in line.points if n == 0), None)
    before = "" if uncut is None else f"Uncut {accuracy_words(uncut)}. "
    return f"{before}{'; '.join(found)}. Over {first.behind}."


def accuracy_words(score: TaskScore) -> str:
    """Return `45.0 ± 5.0 %`; without an error for one question, or where all or none are right."""
    return percent(score.accuracy, score.accuracy_stderr)


def curve_alt(curve: RemovalCurve) -> str:
    """Return the finding: how many layers go before the loss has risen by half a nat and by one, per strategy."""
    found = []
    for line in curve.lines:
        steps = [max((p.n for p in line.points if p.nll <= curve.base_nll + rise), default=0) for rise in (0.5, 1.0)]
        found.append(f"{line.label}: {', '.join(counted(step, 'layer') for step in steps)}")
    return (
        f"Layers removed before the loss is 0.5 and 1 nat above the uncut model's {curve.base_nll:.2f}: "
        f"{'; '.join(found)}."
    )


def agreement_alt(found: tuple[Agreement, ...]) -> str:
    """Return the finding of the agreement charts in a sentence."""
    known = [a for a in found if math.isfinite(a.spearman_within)]
    if not known:
        return "Too few blocks are measured to compare criteria."
    best = max(known, key=lambda a: a.spearman_within)
    regret = min(known, key=lambda a: a.mean_regret)
    return (
        f"Within rows {criteria.label(best.criterion)} ranks blocks most like the measured loss "
        f"(Spearman {with_error(best.spearman_within)}); {criteria.label(regret.criterion)} has the lowest "
        f"mean regret, {with_error(regret.mean_regret)} nats."
    )


def difference_grid(predicted: Grid, measured: Grid) -> Grid:
    """Return, per block, predicted rank minus measured rank within its row, as a share of the row: -1 .. 1.

    Below 0 the criterion thinks too well of the block (it costs more than its rank says), above 0 too badly.
    """
    size = predicted.num_layers
    mean = np.full((size, size), np.nan)
    for n in range(1, size):
        one, other = predicted.row(n), measured.row(n)
        known = np.isfinite(one) & np.isfinite(other)
        if known.sum() > 1:
            ranks = [np.argsort(np.argsort(row[known])) / (known.sum() - 1) for row in (one, other)]
            mean[n - 1, np.flatnonzero(known)] = ranks[0] - ranks[1]
    return Grid(mean=mean, stderr=np.full_like(mean, np.nan), samples=min(predicted.samples, measured.samples))


def _cut_words(removed: tuple[int, ...]) -> str:
    return f"layer{'s' * (len(removed) > 1)} {layers_text(removed)}" if removed else "uncut"


def mark(index: int) -> tuple[str, str]:
    """Return the symbol, as a character, and the colour of a chart's line by its place."""
    return _GLYPHS[index % len(_GLYPHS)], _COLOURS[index % len(_COLOURS)]


def _line(index: int, label: str, x: list[int], y: list[float], error: list[float], words: list[str]) -> go.Scatter:
    colour, symbol = _COLOURS[index % len(_COLOURS)], _SYMBOLS[index % len(_SYMBOLS)]
    return go.Scatter(
        x=x,
        y=y,
        name=label,
        mode="lines+markers",
        line={"color": colour, "width": 1.5},
        marker={"symbol": symbol, "size": 6},
        error_y=error_bars(error),
        text=words,
        hovertemplate=f"{label}<br>n %{{x}}: %{{y:.4g}}<br>%{{text}}<extra></extra>",
    )
