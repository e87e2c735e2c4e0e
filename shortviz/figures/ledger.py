"""Figures over a ledger and a training: what each step won back, and the loss as it heals. No streamlit, no torch."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from shortviz.figures.theme import CHOSEN, error_bars, lay_out, text_colour
from shortviz.records.formatting import UNKNOWN, counted, layers_text, percent, with_error
from shortviz.records.heal import HealHistory
from shortviz.records.ledger import Ledger, LedgerStep

_LEFT, _WON = "#d55e00", "#009e73"
"""Loss that is left, loss that was won back: apart for every kind of colour vision, and hatched apart too."""
_LEGEND = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}
_ROW_HEIGHT, _FRAME_HEIGHT = 44, 92


def recovery_figure(ledger: Ledger, dark: bool = False) -> go.Figure:
    """Return a bar for each step after uncut: how much of the cut's loss is left, and how much was won back.

    The error bar is the paired one of what is left; the words on the bar say the share. Uncut is 0.
    """
    ink = text_colour(dark)
    lost = ledger.lost[0]
    steps = [step for step in ledger.steps if step.name != "uncut"]
    left = [step.evaluation.nll_increase or 0.0 for step in steps]
    bars = error_bars([step.evaluation.nll_increase_stderr for step in steps], color=ink)
    won = [max(lost - value, 0.0) if step.treatments else 0.0 for step, value in zip(steps, left, strict=True)]
    # A line of their own for the methods: on a phone one line would take half the width.
    labels = [step.label.replace(" (", "<br>(", 1) for step in steps]
    figure = go.Figure(
        [
            go.Bar(
                y=labels,
                x=left,
                name="still lost",
                orientation="h",
                marker={"color": _LEFT},
                error_x=bars,
                hovertemplate="%{y}: %{x:+.4f} nats over uncut<extra></extra>",
            ),
            go.Bar(
                y=labels,
                x=won,
                base=left,
                name="won back",
                orientation="h",
                marker={"color": _WON, "opacity": 0.75},
                hovertemplate="%{y}: %{x:.4f} nats won back<extra></extra>",
            ),
        ]
    )
    ends = [max(value, lost) + error for value, error in zip(left, bars["array"], strict=True)]
    for label, step, end in zip(labels, steps, ends, strict=True):
        place = {"x": max(end, 0.0), "y": label, "xanchor": "left", "xshift": 8}
        figure.add_annotation(text=_bar_words(step), showarrow=False, **place)
    low, high = min([0.0, *left]), max([1e-6, *ends])
    lay_out(
        figure,
        dark,
        "NLL over the uncut model, nats a token",
        height=_FRAME_HEIGHT + _ROW_HEIGHT * len(steps),
        barmode="overlay",
        bargap=0.35,
        margin={"l": 8, "r": 16, "t": 8, "b": 44},
        legend=_LEGEND,
        showlegend=any(step.treatments for step in steps),
        uirevision="ledger",
        xaxis_title_font_size=12,
        # With room on the right for the words beside the bars.
        xaxis_range=[low - 0.02 * (high - low), high + 0.5 * (high - low)],
        yaxis={"autorange": "reversed", "automargin": True, "ticksuffix": "  "},
    )
    figure.add_vline(x=0, line={"color": ink, "width": 1})
    return figure


def recovery_alt(ledger: Ledger) -> str:
    """Return the finding in a sentence: what the cut costs, and which share each step won back."""
    lost, error = ledger.lost
    words = [
        f"Cutting layers {layers_text(ledger.removed)} costs {with_error(lost, error)} nats a token"
        + (f" over {counted(ledger.steps[0].evaluation.score.windows, 'window')}" if ledger.steps else "")
    ]
    words += [f"{step.label} wins back {share_words(step)}" for step in ledger.steps if step.treatments]
    return "; ".join(words) + ("." if len(words) > 1 else "; nothing was repaired yet.")


def share_words(step: LedgerStep) -> str:
    """Return `39.3 ± 1.2 %`, or why there is no share."""
    share = percent(step.recovered, step.recovered_stderr)
    return "no share, for the cut lost nothing" if share == UNKNOWN else share


def healing_figure(history: HealHistory, dark: bool = False) -> go.Figure:
    """Return the training so far: held-out NLL with errors and the best step above, what is minimised below."""
    trained = [p for p in history.points if p.loss is not None]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.06)
    above = [
        go.Scatter(
            x=[p.step for p in history.measured],
            y=[p.heldout_nll for p in history.measured],
            error_y=error_bars(p.heldout_stderr for p in history.measured),
            mode="lines+markers",
            name="held out",
            line={"color": "#56b4e9" if dark else "#0072b2", "width": 2},
            marker={"size": 7},
            hovertemplate="step %{x}: held-out NLL %{y:.4f} nats<extra></extra>",
        )
    ]
    if history.best_nll is not None:
        above.append(
            go.Scatter(
                x=[history.best_step],
                y=[history.best_nll],
                mode="markers",
                name="best, kept",
                marker={"symbol": "star", "size": 14, "color": CHOSEN, "line": {"color": "#ffffff", "width": 1}},
                hovertemplate="best step %{x}: %{y:.4f} nats, kept<extra></extra>",
            )
        )
    below = go.Scatter(
        x=[p.step for p in trained],
        y=[p.loss for p in trained],
        mode="lines+markers" if len(trained) < 3 else "lines",
        name="training",
        line={"color": "#e69f00" if dark else "#b0760a", "width": 1.5},
        hovertemplate="step %{x}: training loss %{y:.4f}<extra></extra>",
    )
    for row, trace in [(1, above[0]), (2, below), *((1, best) for best in above[1:])]:
        figure.add_trace(trace, row=row, col=1)
    lay_out(
        figure,
        dark,
        height=330,
        margin={"l": 64, "r": 16, "t": 28, "b": 44},
        legend=_LEGEND,
        uirevision="healing",
        xaxis2_title_text="step",
        yaxis_title_text="held-out NLL, nats",
        yaxis2_title_text="training loss",
    )
    figure.update_xaxes(title_font_size=12, range=[-0.5, max(history.steps, 1) + 0.5])
    return figure.update_yaxes(title_font_size=12)


def healing_alt(history: HealHistory) -> str:
    """Return where the training stands in a sentence."""
    done = history.points[-1].step if history.points else 0
    if history.best_nll is None or history.start_nll is None:
        return f"{done} of {history.steps} steps are made; held-out loss was not measured yet."
    change = history.start_nll - history.best_nll
    moved = f"fell by {change:.4f}" if change > 0 else "has not fallen"
    return (
        f"After {done} of {history.steps} steps the held-out NLL {moved} from {history.start_nll:.4f}; the best, "
        f"{history.best_nll:.4f} nats, is at step {history.best_step} and is kept."
    )


def _bar_words(step: LedgerStep) -> str:
    if not step.treatments:
        return with_error(step.evaluation.nll_increase, step.evaluation.nll_increase_stderr)
    share = percent(step.recovered, step.recovered_stderr)
    return "nothing to win back" if share == UNKNOWN else share
