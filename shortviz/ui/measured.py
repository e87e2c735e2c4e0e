"""The measured side of the Map page: which map is drawn, agreement with the losses, the removal curve."""

from dataclasses import replace

import streamlit as st

from shortviz import charts, loss_charts
from shortviz.agreement import agreement, agreement_table
from shortviz.map_cells import MEASURED
from shortviz.records import Block, BlockDistances, BlockLosses, Evaluation, ModelInfo, Score
from shortviz.ui import state as s
from shortviz.ui.words import plain
from shortviz.words import count, duration

SHOWS = ("predicted", "measured", "difference")
METRICS = tuple(MEASURED)
FONT = '"Source Sans", "Source Sans Pro", sans-serif'
"""Of charts, that of the page around them."""
_AGREEMENT_COLUMNS = {
    # Short heads and narrow columns: on a phone they stand side by side.
    "mark": st.column_config.TextColumn("", width=28, help="The mark of its line in the picture of regret."),
    "criterion": st.column_config.TextColumn(width=110),
    "spearman, all blocks": st.column_config.NumberColumn(
        "rank corr.", width=66, help="Spearman's rank correlation with the measured NLL increase, over all blocks."
    ),
    "spearman, within n": st.column_config.NumberColumn(
        "within n", width=58, help="The same among blocks of one size, averaged over the sizes."
    ),
    "mean regret, nats": st.column_config.NumberColumn(
        "regret", width=52, help="What the block it calls best costs above the best measured, in nats; mean over n."
    ),
    "picks the best start": st.column_config.TextColumn(
        "hits", width=54, help="For how many sizes it picks the start with the lowest measured loss."
    ),
}
KINDS = {"predicted": "measure", "measured": "losses", "difference": "losses"}
"""The job that fills in each map."""


def show(state: s.State) -> str:
    """Return which map is shown: predicted, measured or the difference of their ranks."""
    found = state.get(s.SHOW)
    return found if found in SHOWS else SHOWS[0]


def drawn(
    which: str, criterion: str, distances: BlockDistances | None, losses: BlockLosses | None
) -> BlockDistances | None:
    """Return what the map draws, in the shape of a distance map; None where it is not measured yet."""
    if which == "predicted":
        return distances
    if losses is None:
        return None
    measured = loss_charts.as_map(losses, distances.norms if distances is not None else None)
    if which == "measured":
        return measured
    grid = distances.criteria.get(criterion) if distances is not None else None
    if grid is None:
        return None
    return replace(measured, criteria={criterion: loss_charts.difference_grid(grid, losses.increase)})


def facts(losses: BlockLosses) -> str:
    """Return what text stands behind the measured map, and what is still missing."""
    text = losses.text
    whole = losses.windows[losses.windows > 0]
    least = int(whole.min()) if whole.size else 0
    windows = f"{int(whole.max())} windows of {text.max_length}" if least else "a first look"
    words = [f"{count(int(losses.tokens.max()))} tokens a block of {plain(text.source)}, {windows}"]
    if not losses.complete:
        words.append("unfinished")
    if least < 2:
        words.append("no errors before two windows")
    if losses.seconds:
        words.append(f"measured in {duration(losses.seconds)}")
    return " · ".join(words)


def warning(losses: BlockLosses, distances: BlockDistances | None) -> None:
    """Warn where the losses are scored on the text that the blocks are chosen by."""
    source = losses.text.source
    if distances is not None and distances.text.source == source:
        st.caption(
            f":orange[:material/warning: The losses are scored on the calibration text, {plain(source)}: what was "
            "chosen by it looks better than it is. Choose another evaluation text on the Model page.]"
        )


def agreement_view(
    distances: BlockDistances | None, losses: BlockLosses | None, model: ModelInfo, criterion: str, chosen: Block | None
) -> None:
    """Draw how well the criteria predict the measured loss: points, regret, a table."""
    if distances is None or losses is None:
        missing("Agreement needs both maps: the predicted one and the measured one.")
        return
    found = agreement(distances, losses, model)
    dark = st.context.theme.type == "dark"
    alt = loss_charts.agreement_alt(found)
    points, regret = st.columns(2, gap="small")
    with points:
        figure = loss_charts.agreement_figure(distances, losses, criterion, chosen, dark)
        figure.update_layout(height=260, font={"family": FONT, "size": 11})
        st.plotly_chart(figure, theme=None, key="agreement_points", config={"displaylogo": False}, alt=alt)
    with regret:
        figure = loss_charts.regret_figure(found, dark)
        figure.update_layout(height=260, showlegend=False, font={"family": FONT, "size": 11})
        st.plotly_chart(figure, theme=None, key="agreement_regret", config={"displaylogo": False}, alt=alt)
    st.caption(plain(alt))
    words = agreement_table(found).assign(criterion=[charts.label(one.criterion) for one in found])
    marks = [loss_charts.mark(index) for index in range(len(found))]
    words.insert(0, "mark", [glyph for glyph, _ in marks])
    st.dataframe(
        words.style.format(precision=3, na_rep="").apply(
            lambda _: [f"color: {colour}" for _, colour in marks], subset=["mark"]
        ),
        hide_index=True,
        height="content",
        column_config=_AGREEMENT_COLUMNS,
        alt="Rank correlation and regret of every criterion",
    )


def missing(words: str) -> None:
    """Say in place of a chart what has to be measured first."""
    with st.container(height=440, border=True, vertical_alignment="center"):
        st.caption(f"{words} Show “measured” and press Measure.", text_alignment="center")


def from_map(losses: BlockLosses | None, model: ModelInfo, block: Block) -> Evaluation | None:
    """Return the map's cell of a block as an evaluation, so that nothing is measured twice; None where it has none.

    What only a run of the cut model itself can tell (same next token, seconds) is left out.
    """
    if losses is None or block.n >= losses.num_layers or not losses.windows[block.n - 1, block.start]:
        return None
    increase, error = losses.increase.at(block)
    nll, nll_error = losses.nll.at(block)
    if increase != increase:
        return None
    gone = block.layers
    score = Score(
        nll=nll,
        nll_stderr=nll_error,
        tokens=int(losses.tokens[block.n - 1, block.start]),
        windows=int(losses.windows[block.n - 1, block.start]),
        forward_seconds=float("nan"),
        parameters=model.parameters - sum(model.layer_parameters[i] for i in gone),
        bytes=model.bytes - sum(model.layer_bytes[i] for i in gone),
        cache_bytes_per_token=sum(model.layer_cache_bytes) - sum(model.layer_cache_bytes[i] for i in gone),
    )
    kl, kl_error = losses.kl.at(block)
    return Evaluation(
        score=score,
        text=losses.text,
        removed=gone,
        base=replace(losses.base, nll=nll - increase),
        nll_increase=increase,
        nll_increase_stderr=error,
        kl=kl,
        kl_stderr=kl_error,
        complete=losses.complete,
    )


def is_from_map(evaluation: Evaluation) -> bool:
    """Return whether an evaluation was read off the measured map."""
    return evaluation.score.forward_seconds != evaluation.score.forward_seconds
