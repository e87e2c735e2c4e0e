"""The left side of the Map page: what stands behind the map, and its views."""

from collections.abc import Mapping, Sequence
from functools import partial

import streamlit as st

from shortviz import charts
from shortviz.job_state import JobState
from shortviz.records import Block, BlockDistances, BlockLosses, ModelInfo
from shortviz.ui import curve_view, measured, texts_view
from shortviz.ui import state as s
from shortviz.ui.choosing import choose
from shortviz.ui.notes import progress_words
from shortviz.ui.resources import Bench
from shortviz.ui.selection import parse_cell, parse_row, parse_selection
from shortviz.ui.shown import Shown
from shortviz.ui.words import plain
from shortviz.words import count, duration

VIEWS = ("Map", "Table", "Best per n", "Agreement", "Curve", "Texts")
CHART_HEIGHT = 440
_BAR_HEIGHT = 14
"""Pixels of a progress bar, kept free without one: the map stays where it is when work starts."""
FONT = measured.FONT


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
            st.caption(measured.facts(losses))
        elif which == "predicted" and distances is not None:
            st.caption(_distance_facts(distances))
        else:
            st.caption("Not measured yet.")
        st.space(_BAR_HEIGHT)
        if which != "predicted" and losses is not None:
            measured.warning(losses, distances)


def _distance_facts(distances: BlockDistances) -> str:
    text = distances.text
    words = f"{distances.samples} of {text.rows} rows" if distances.samples < text.rows else f"{text.rows} rows"
    time = f", measured in {duration(distances.seconds)}" if distances.seconds else ""
    return f"Averaged over {words} of {plain(text.source)}, {count(text.tokens)} tokens, {plain(text.bos)}{time}."


def views(
    bench: Bench,
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
        measured.agreement_view(distances, losses, model, criterion, chosen)
        return True
    if view == "Curve":
        curve_view.draw(bench, shown, distances, losses, model, (jobs["greedy"], jobs["tasks"]))
        return True
    if view == "Texts":
        texts_view.draw(bench, shown, distances, criterion, chosen, jobs["texts"])
        return True
    drawn = measured.drawn(which, criterion, distances, losses)
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


def criterion_of(state: s.State, distances: BlockDistances) -> str:
    """Return the criterion to draw: the chosen one where it was measured."""
    chosen = str(state.get(s.CRITERION, ""))
    return chosen if chosen in distances.criteria else next(iter(distances.criteria))


def drawn_criterion(state: s.State, which: str, criterion: str, drawn: BlockDistances) -> str:
    """Return what the drawn map shows: the criterion, or the chosen measured loss."""
    if which != "measured":
        return criterion
    metric = str(state.get(s.METRIC))
    return metric if metric in drawn.criteria else next(iter(drawn.criteria))


def map_look(state: s.State, which: str, chosen: Block | None, *, dark: bool) -> charts.MapView:
    """Return how this session looks at a map."""
    scale: charts.Scale = "raw" if state.get(s.SCALE) == "raw" else "per_n"
    return charts.MapView(
        scale="difference" if which == "difference" else scale,
        palette="viridis" if state.get(s.PALETTE) == "viridis" else "cividis",
        selected=chosen,
        dark=dark,
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
        alt=charts.map_alt(distances, criterion, model),
    )


def _table(distances: BlockDistances, criterion: str) -> None:
    table = charts.map_table(distances, criterion)
    st.dataframe(
        table.style.format(precision=4, na_rep=""),
        key="map_table",
        height=CHART_HEIGHT,
        on_select=partial(_cell_chosen, distances.num_layers),
        selection_mode="single-cell",
        alt=f"{charts.label(criterion)} of every block: one row per n, one column per start layer",
    )


def _best(distances: BlockDistances, criterion: str, model: ModelInfo) -> None:
    table = charts.best_table(distances, criterion, model)
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
            "distance": st.column_config.NumberColumn(charts.label(criterion), format="%.4f"),
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
