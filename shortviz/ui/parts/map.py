"""The left side of the Map page: what stands behind the map, and its views."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import streamlit as st

from shortviz.analysis.agreement import agreement, agreement_table
from shortviz.criteria.base import MEASURED, label
from shortviz.figures import losses as loss_charts
from shortviz.figures import map as charts
from shortviz.figures.cells import as_map, best_table, map_alt, map_table
from shortviz.records.formatting import count, duration
from shortviz.records.measured import BlockDistances, BlockLosses, Evaluation
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.service.queue import JobState
from shortviz.service.service import Service
from shortviz.ui.parts import curve, sensitivity
from shortviz.ui.parts.notes import missing, plain, progress_words
from shortviz.ui.session import state as s
from shortviz.ui.session.shown import (
    FONT,
    VIEWS,
    Shown,
    choose,
    criterion_of,
    drawn_criterion,
    map_look,
    parse_cell,
    parse_row,
    parse_selection,
)

# The measured side of the Map page: which map is drawn, agreement with the losses, the removal curve.

SHOWS = ("predicted", "measured", "difference")
METRICS = tuple(MEASURED)
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


def drawn_values(
    which: str, criterion: str, distances: BlockDistances | None, losses: BlockLosses | None
) -> BlockDistances | None:
    """Return what the map draws, in the shape of a distance map; None where it is not measured yet."""
    if which == "predicted":
        return distances
    if losses is None:
        return None
    measured = as_map(losses, distances)
    if which == "measured":
        return measured
    grid = distances.criteria.get(criterion) if distances is not None else None
    if grid is None:
        return None
    return replace(measured, criteria={criterion: loss_charts.difference_grid(grid, losses.increase)})


def losses_facts(losses: BlockLosses) -> str:
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
    words = agreement_table(found).assign(criterion=[label(one.criterion) for one in found])
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


def is_from_map(evaluation: Evaluation) -> bool:
    """Return whether an evaluation was read off the measured map."""
    return evaluation.score.forward_seconds != evaluation.score.forward_seconds


CHART_HEIGHT = 440
_BAR_HEIGHT = 14
"""Pixels of a progress bar, kept free without one: the map stays where it is when work starts."""


def facts(which: str, distances: BlockDistances | None, losses: BlockLosses | None, job: JobState | None) -> None:
    """Say what text stands behind the map; while it grows, how far it is.

    Words and the place of the bar are the same two elements either way, so each is replaced where it stands: with
    other elements the map jumps when a message of Streamlit ends between the two.
    """
    running = job if job is not None and job.live else None
    with st.container(gap=None):
        if running is not None:
            st.caption(progress_words(running))
            st.progress(running.fraction)
            return
        if which != "predicted" and losses is not None:
            st.caption(losses_facts(losses))
        elif which == "predicted" and distances is not None:
            st.caption(_distance_facts(distances))
        else:
            st.caption("Not measured yet.")
        st.space(_BAR_HEIGHT)
        if which != "predicted" and losses is not None:
            warning(losses, distances)


def _distance_facts(distances: BlockDistances) -> str:
    text = distances.text
    words = f"{distances.samples} of {text.rows} rows" if distances.samples < text.rows else f"{text.rows} rows"
    time = f", measured in {duration(distances.seconds)}" if distances.seconds else ""
    return f"Averaged over {words} of {plain(text.source)}, {count(text.tokens)} tokens, {plain(text.bos)}{time}."


def views(
    bench: Service,
    shown: Shown,
    jobs: Mapping[str, JobState | None],
    which: str,
    distances: BlockDistances | None,
    losses: BlockLosses | None,
    model: ModelInfo,
    chosen: Block | None,
) -> bool:
    """Draw the chosen view of the chosen map; False where it is not measured yet.

    Choosing in the map, the table or the list of best blocks chooses the same block.
    """
    state = s.session()
    view = state.get(s.VIEW, VIEWS[0])
    criterion = criterion_of(state, distances) if distances is not None else ""
    if view == "Agreement":
        agreement_view(distances, losses, model, criterion, chosen)
        return True
    if view == "Curve":
        curve.draw(bench, shown, distances, losses, model, (jobs["curve"], jobs["tasks"]))
        return True
    if view == "Texts":
        sensitivity.draw(bench, shown, distances, criterion, chosen, jobs["texts"])
        return True
    drawn = drawn_values(which, criterion, distances, losses)
    if drawn is None:
        return False
    criterion = drawn_criterion(state, which, criterion, drawn)
    if view == "Table":
        _table(drawn, criterion)
    elif view == "Best per n":
        _best(drawn, criterion, model)
    else:
        _map(drawn, criterion, model, map_look(state, which, chosen, dark=st.context.theme.type == "dark"))
    return True


def view_switch() -> None:
    """Draw the switch between the views."""
    st.segmented_control(
        "View",
        VIEWS,
        default=VIEWS[0],
        required=True,
        key=s.VIEW,
        bind="query-params",
        label_visibility="collapsed",
        wrap=True,
    )


def _map(distances: BlockDistances, criterion: str, model: ModelInfo, view: charts.MapView) -> None:
    figure = charts.distance_map(distances, criterion, model, view)
    figure.update_layout(height=max(CHART_HEIGHT, 12 * distances.num_layers), font={"family": FONT, "size": 11})
    st.plotly_chart(
        figure,
        theme=None,
        key="map",
        on_select=partial(_clicked, distances.num_layers),
        selection_mode="points",
        config={"displaylogo": False, "toImageButtonOptions": {"format": "svg", "filename": "shortviz-map"}},
        alt=map_alt(distances, criterion, model),
    )


def _table(distances: BlockDistances, criterion: str) -> None:
    table = map_table(distances, criterion)
    st.dataframe(
        table.style.format(precision=4, na_rep=""),
        key="map_table",
        height=CHART_HEIGHT,
        on_select=partial(_cell_chosen, distances.num_layers),
        selection_mode="single-cell",
        alt=f"{label(criterion)} of every block: one row per n, one column per start layer",
    )


def _best(distances: BlockDistances, criterion: str, model: ModelInfo) -> None:
    table = best_table(distances, criterion, model)
    rows_needed = distances.settling.get(criterion)
    if rows_needed is not None:
        table = table.assign(needed=[rows_needed.words(int(n)) for n in table["n"]])
    blocks = [Block(start=int(start), n=int(n)) for start, n in zip(table["start"], table["n"], strict=True)]
    st.dataframe(
        table,
        key="best_table",
        column_order=("n", "layers", "distance", "stderr", "gap", "needed", "ties", "note"),
        height=CHART_HEIGHT,
        hide_index=True,
        on_select=partial(_row_chosen, blocks),
        selection_mode="single-row",
        column_config={
            "n": st.column_config.NumberColumn("n", width="small"),
            "distance": st.column_config.NumberColumn(label(criterion), format="%.4f"),
            "stderr": st.column_config.NumberColumn("± error", format="%.4f"),
            "gap": st.column_config.NumberColumn("gap to second", format="%.4f"),
            "needed": st.column_config.TextColumn("rows needed", help=_NEEDED_HELP),
            "ties": st.column_config.TextColumn("tied with starts"),
        },
        alt="The lowest block of every size n",
    )


_NEEDED_HELP = "Rows of this text after which the best start no longer changes, in 19 of 20 random orders of the rows."


def _clicked(num_layers: int) -> None:
    choose(parse_selection(s.session().get("map"), num_layers))


def _cell_chosen(num_layers: int) -> None:
    choose(parse_cell(s.session().get("map_table"), num_layers, range(1, num_layers + 1)))


def _row_chosen(blocks: Sequence[Block]) -> None:
    choose(parse_row(s.session().get("best_table"), blocks))
