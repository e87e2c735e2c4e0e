"""The ledger of a cut on a page: a table, the chart of what was won back, and what was said of each treatment."""

import streamlit as st

from shortviz import ledger_charts
from shortviz.ledger import Ledger, LedgerStep
from shortviz.ledger_steps import accuracy_change
from shortviz.run_tables import ledger_table
from shortviz.ui.map_view import FONT
from shortviz.ui.words import plain
from shortviz.words import counted, percent, with_error


def draw(ledger: Ledger, *, key: str) -> None:
    """Draw the ledger: numbers on the left, the chart on the right."""
    asked = ledger.task(ledger.steps[0]) is not None
    left, right = st.columns([2.0 if asked else 1.45, 1], gap="medium")
    alt, table = ledger_charts.recovery_alt(ledger), ledger_table(ledger)
    with left:
        st.dataframe(
            [dict(zip(table.headings, row, strict=True)) for row in table.rows],
            hide_index=True,
            height="content",
            width="stretch",
            key=f"{key}_table",
            alt=alt,
            # Widths for the longest entry: columns that fit themselves to the first rows clip what comes later.
            column_config={
                # What matters first, and narrow: a phone shows three columns.
                "step": st.column_config.TextColumn(width=160),
                "won back": st.column_config.TextColumn(width=96, help="Share of the lost NLL; the error is paired."),
                "over uncut": st.column_config.TextColumn(
                    width=110, help="NLL increase in nats a token, with its paired error."
                ),
                "NLL, nats": st.column_config.TextColumn(width=104, help="Per token; the error is over windows."),
                "perplexity": st.column_config.TextColumn(width=88),
                "KL, nats": st.column_config.TextColumn(width=104, help="KL(uncut ‖ this model) per token."),
                "accuracy": st.column_config.TextColumn(
                    width=96, help="Of the questions named below; the error is binomial."
                ),
                "time": st.column_config.TextColumn(width=84, help="All treatments up to this step."),
            },
        )
        st.caption(behind(ledger))
        if asked:
            st.caption(accuracies(ledger))
    with right:
        figure = ledger_charts.recovery_figure(ledger, st.context.theme.type == "dark")
        figure.update_layout(font={"family": FONT})
        st.plotly_chart(figure, theme=None, key=f"{key}_chart", config={"displayModeBar": False}, alt=alt)


def behind(ledger: Ledger) -> str:
    """Return what text stands behind the numbers."""
    score = ledger.steps[0].evaluation.score
    windows = f"{counted(score.windows, 'window')} of {ledger.text.max_length}"
    return f"{counted(score.tokens, 'token')} scored of {plain(ledger.text.source)}, {windows}, the same for every step"


def accuracies(ledger: Ledger) -> str:
    """Return how the accuracy of each step differs from the uncut model's, paired, and what stands behind it."""
    asked = ledger.task(ledger.steps[0])
    if asked is None:
        return ""
    changes = [(step, accuracy_change(ledger, step)) for step in ledger.steps[1:]]
    told = [f"{plain(step.label)} {percent(*change, sign=True)}" for step, change in changes if change is not None]
    left = [plain(step.label) for step, change in changes if change is None]
    return f"Accuracy against uncut, paired: {'; '.join(told) or 'no other step was asked'}. {plain(asked.behind)}." + (
        f" Not asked: {', '.join(left)}." if left else ""
    )


def step_words(step: LedgerStep) -> str:
    """Return a treated step in a line: perplexity, increase with its paired error, share won back, over how much."""
    found = step.evaluation
    perplexity = with_error(found.score.perplexity, found.score.perplexity_stderr)
    return (
        f"{plain(step.label[:1].upper() + step.label[1:])}: perplexity **{perplexity}** · NLL "
        f"{with_error(found.nll_increase, found.nll_increase_stderr, sign=True)} (paired) · won back "
        f"**{won_back(step)}** · {counted(found.score.tokens, 'token')}"
    )


def steps_line(ledger: Ledger, *, most: int = 2) -> str:
    """Return the best treated steps in a line: perplexity, share won back, over how many tokens; "" where none is."""
    treated = sorted((step for step in ledger.steps if step.treatments), key=lambda step: step.evaluation.score.nll)
    if not treated:
        return ""
    best = treated[:most][::-1]
    alike = len({step.name for step in best}) < len(best)
    told = [
        f"{plain(step.label if alike else step.name)} **{_perplexity(step)}**, won back **{won_back(step)}**"
        for step in best
    ]
    more = f" · {len(treated) - most} more on the Heal page" if len(treated) > most else ""
    line = f"{' · '.join(told)} · {counted(treated[0].evaluation.score.tokens, 'token')}{more}"
    return line[:1].upper() + line[1:]


def _perplexity(step: LedgerStep) -> str:
    return with_error(step.evaluation.score.perplexity, step.evaluation.score.perplexity_stderr)


def won_back(step: LedgerStep) -> str:
    """Return `39 ± 1 %`; a dash where there is no share."""
    return percent(step.recovered, step.recovered_stderr)
