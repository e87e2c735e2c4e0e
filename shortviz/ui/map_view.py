"""The left side of the Map page: toolbar, progress, and the three views of one criterion."""

from collections.abc import Mapping, Sequence
from functools import partial

import streamlit as st

from shortviz import charts, criteria
from shortviz.job_state import JobState
from shortviz.records import Block, BlockDistances, BlockLosses, ModelInfo
from shortviz.ui import actions, curve_view, loss_actions, measured, texts_view
from shortviz.ui import state as s
from shortviz.ui.choosing import choose
from shortviz.ui.looks import main_button
from shortviz.ui.notes import job_progress
from shortviz.ui.resources import Bench
from shortviz.ui.selection import parse_cell, parse_row, parse_selection
from shortviz.ui.shelves import run_key
from shortviz.ui.shown import Shown
from shortviz.ui.words import count, duration, plain

SCALES = ("per n", "raw")
PALETTES = ("cividis", "viridis")
VIEWS = ("Map", "Table", "Best per n", "Agreement", "Curve", "Texts")
CHART_HEIGHT = 440
FONT = measured.FONT


def toolbar(bench: Bench, shown: Shown, jobs: Mapping[str, JobState | None]) -> None:
    """Draw the choices above the map, and the two buttons that start and stop a measurement."""
    names = list(shown.distances.criteria) if shown.distances is not None else list(criteria.names())
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        which = st.segmented_control(
            "Show",
            measured.SHOWS,
            default=measured.SHOWS[0],
            label_visibility="collapsed",
            required=True,
            key=s.SHOW,
            bind="query-params",
            help="What a criterion predicts, what removing each block really costs, or where the two part.",
        )
        job = jobs[measured.KINDS[which]]
        live = job is not None and job.live
        if which == "measured":
            st.selectbox(
                "Measured loss",
                measured.METRICS,
                format_func=charts.label,
                icon=":material/straighten:",
                key=s.METRIC,
                bind="query-params",
                label_visibility="collapsed",
                width=230,
            )
        else:
            st.selectbox(
                "Criterion",
                names,
                format_func=criteria.label,
                icon=":material/straighten:",
                key=s.CRITERION,
                bind="query-params",
                persist_state="session",
                label_visibility="collapsed",
                width=230,
            )
        st.segmented_control(
            "Scale",
            SCALES,
            default=SCALES[0],
            label_visibility="collapsed",
            required=True,
            key=s.SCALE,
            bind="query-params",
        )
        st.selectbox(
            "Palette",
            PALETTES,
            icon=":material/palette:",
            key=s.PALETTE,
            bind="query-params",
            label_visibility="collapsed",
            width=150,
        )
        st.space("stretch")
        st.button(
            "Measure",
            icon=":material/play_arrow:",
            type=main_button() if shown.distances is None or shown.bundled else "secondary",
            disabled=shown.handle is None or live,
            help=_measure_help(shown, which, live),
            on_click=_measure if which == "predicted" else _measure_losses,
            args=(bench, shown),
            key="measure_button",
        )
        st.button(
            "Stop",
            icon=":material/stop:",
            disabled=not live or (job is not None and job.stopping),
            help="Stops after this batch; what is measured so far is kept.",
            on_click=_stop,
            args=(bench, job.id if job is not None else ""),
            key="stop_button",
        )


def facts(which: str, distances: BlockDistances | None, losses: BlockLosses | None, job: JobState | None) -> None:
    """Say what text stands behind the map; while it grows, how far it is."""
    if job is not None and job.live:
        job_progress(job)
    elif which != "predicted":
        if losses is not None:
            measured.facts(losses, distances)
    elif distances is not None:
        text = distances.text
        words = f"{distances.samples} of {text.rows} rows" if distances.samples < text.rows else f"{text.rows} rows"
        time = f", measured in {duration(distances.seconds)}" if distances.seconds else ""
        st.caption(
            f"Averaged over {words} of {plain(text.source)}, {count(text.tokens)} tokens, {plain(text.bos)}{time}."
        )


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
    settling = distances.settling.get(criterion)
    if settling is not None:
        table = table.assign(needed=[settling.words(int(n)) for n in table["n"]])
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


def _measure_help(shown: Shown, which: str, live: bool) -> str:
    if live:
        return "A measurement is running."
    if shown.handle is None:
        return "Load a model first."
    if which != "predicted":
        return "Measures the loss without every block: a first look in a minute or two, then refined."
    return "Streams the calibration text through the model and fills the map in."


def _measure(bench: Bench, shown: Shown) -> None:
    state = s.session()
    ref = shown.ref
    if ref is None:
        return
    spec = s.calibration(state)
    s.leave_run(state)
    s.set_job(state, "measure", actions.start_measure(bench, ref, spec, run_key(ref, spec)))


def _measure_losses(bench: Bench, shown: Shown) -> None:
    state = s.session()
    ref = shown.ref
    if ref is None:
        return
    key = run_key(ref, s.calibration(state))
    s.leave_run(state)
    s.set_job(state, "losses", loss_actions.start_losses(bench, ref, s.evaluation(state), key, shown.run))


def _stop(bench: Bench, job_id: str) -> None:
    bench.jobs.cancel(job_id)
