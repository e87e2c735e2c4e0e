"""The ledger of a cut on a page: a table, the chart of what was won back, and what was said of each treatment."""

import math

import streamlit as st

from shortviz import ledger_charts
from shortviz.ledger import Ledger, LedgerStep
from shortviz.ui.map_view import FONT
from shortviz.ui.words import duration, plain, share, with_error


def draw(ledger: Ledger, *, key: str) -> None:
    """Draw the ledger: numbers on the left, the chart on the right."""
    left, right = st.columns([1.45, 1], gap="medium")
    alt = ledger_charts.recovery_alt(ledger)
    with left:
        st.dataframe(
            [_row(step) for step in ledger.steps],
            hide_index=True,
            height="content",
            width="stretch",
            key=f"{key}_table",
            alt=alt,
            column_config={
                "step": st.column_config.TextColumn(width=178),
                "NLL, nats": st.column_config.TextColumn(help="Per token; the error is over windows."),
                "over uncut": st.column_config.TextColumn(help="NLL increase in nats a token, with its paired error."),
                "won back": st.column_config.TextColumn(help="Share of the lost NLL; the error is paired."),
                "KL, nats": st.column_config.TextColumn(help="KL(uncut ‖ this model) per token."),
            },
        )
        st.caption(behind(ledger))
    with right:
        figure = ledger_charts.recovery_figure(ledger, st.context.theme.type == "dark")
        figure.update_layout(font={"family": FONT})
        st.plotly_chart(figure, theme=None, key=f"{key}_chart", config={"displayModeBar": False}, alt=alt)


def behind(ledger: Ledger) -> str:
    """Return what text stands behind the numbers."""
    score = ledger.steps[0].evaluation.score
    windows = f"{score.windows} window{'s' * (score.windows != 1)} of {ledger.text.max_length}"
    return f"{score.tokens:,} tokens scored of {plain(ledger.text.source)}, {windows}, the same for every step"


def notes(ledger: Ledger) -> None:
    """Say what each treatment was made with, and what it said itself."""
    for step in ledger.steps:
        if step.treatments:
            last = step.treatments[-1]
            text = f" on {plain(last.text.source)}, {last.text.tokens:,} tokens" if last.text is not None else ""
            st.caption(f"{plain(step.label)}{text}, {duration(last.seconds)}. {plain(last.note)}".rstrip())


def step_words(step: LedgerStep) -> str:
    """Return a treated step in a line: perplexity, increase with its paired error, share won back, over how much."""
    found = step.evaluation
    sign = "" if (found.nll_increase or 0.0) < 0 else "+"
    perplexity = with_error(found.score.perplexity, found.score.perplexity_stderr)
    return (
        f"{plain(step.label[:1].upper() + step.label[1:])}: perplexity **{perplexity}** · NLL "
        f"{sign}{_pm(found.nll_increase, found.nll_increase_stderr)} (paired) · won back **{won_back(step)}** · "
        f"{found.score.tokens:,} tokens"
    )


def won_back(step: LedgerStep) -> str:
    """Return `39 ± 1 %`; a dash where there is no share."""
    if step.recovered is None or math.isnan(step.recovered):
        return "–"
    error = step.recovered_stderr
    if error is None or math.isnan(error):
        return share(step.recovered)
    return f"{with_error(100 * step.recovered, 100 * error)} %"


def _row(step: LedgerStep) -> dict[str, str]:
    found, score = step.evaluation, step.evaluation.score
    return {
        "step": step.label,
        "NLL, nats": with_error(score.nll, score.nll_stderr),
        "over uncut": _pm(found.nll_increase, found.nll_increase_stderr),
        "won back": won_back(step),
        "perplexity": with_error(score.perplexity, score.perplexity_stderr),
        "KL, nats": _pm(found.kl, found.kl_stderr),
        "time": duration(step.seconds) if step.treatments else "–",
    }


def _pm(value: float | None, error: float | None) -> str:
    return "–" if value is None else with_error(value, math.nan if error is None else error)
