"""The Map page: toolbar, map on the left, inspector on the right; both sides follow their job while it runs."""

from collections.abc import Mapping

import streamlit as st

from shortviz import criteria
from shortviz.criteria.base import label
from shortviz.errors import PlanError, ShortvizError
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.service import measure
from shortviz.service.queue import JobState
from shortviz.service.requests import EvaluateRequest, MapRequest, MeasureRequest
from shortviz.service.service import Service, run_key
from shortviz.ui.pages import inspector, share
from shortviz.ui.parts import ledger, notes
from shortviz.ui.parts import map as map_view
from shortviz.ui.parts import map as measured
from shortviz.ui.session import state as s
from shortviz.ui.session.polling import main_button
from shortviz.ui.session.service import bench, start_job
from shortviz.ui.session.shown import Shown, live_losses, live_map, look, measure_job, settle_block

# The toolbar of the Map page: what to show and how, and the buttons that start and stop a measurement.

SCALES = ("per n", "raw")
PALETTES = ("cividis", "viridis")


def toolbar(bench: Service, shown: Shown, jobs: Mapping[str, JobState | None]) -> None:
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
                format_func=label,
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
            args=(shown,),
            key="measure_button",
        )
        st.button(
            "Stop",
            icon=":material/stop:",
            disabled=not live or (job is not None and job.stopping),
            help="Stops after this batch; what is measured so far is kept.",
            on_click=notes.cancel,
            args=(bench, job.id if job is not None else ""),
            key="stop_button",
        )


def _measure_help(shown: Shown, which: str, live: bool) -> str:
    if live:
        return "A measurement is running."
    if shown.handle is None:
        return "Load a model first."
    if which != "predicted":
        return "Measures the loss without every block: a first look in a minute or two, then refined."
    return "Streams the calibration text through the model and fills the map in."


def _measure(shown: Shown) -> None:
    state = s.session()
    ref = shown.ref
    if ref is None or shown.handle is None:
        return
    text = s.calibration(state)
    s.leave_run(state)
    batch = measure.app_batch(shown.handle.info.device)
    start_job(MeasureRequest(model=ref, text=text, batch_size=batch), key=run_key(ref, text))


def _measure_losses(shown: Shown) -> None:
    state = s.session()
    ref = shown.ref
    if ref is None:
        return
    key = run_key(ref, s.calibration(state))
    s.leave_run(state)
    request = MapRequest(model=ref, text=s.evaluation(state), windows=measure.APP_WINDOWS)
    start_job(request, key=key, start=shown.key)


TICK_SECONDS = 1.0
"""A changed figure remounts the chart, and a click in that moment is lost: not oftener than a person needs."""
INSPECT_TICK_SECONDS = 0.3
KINDS = ("measure", "losses", "texts", "curve", "tasks", "questions")
"""Jobs whose progress the left side shows."""


def draw() -> None:
    """Draw the page."""
    tools, state = bench(), s.session()
    shown = look(tools, state)
    if shown.error:
        notes.problem(shown.error)
    jobs = _jobs(shown)
    toolbar(tools, shown, jobs)
    left, right = st.columns([1.15, 1], gap="medium")
    distances = live_map(shown, jobs["measure"])
    if shown.model is not None:
        settle_block(state, distances, shown.model)
    with right:
        if shown.model is not None:
            inspector.block_inputs(shown.model.num_layers)  # before the map, which outlines what they say
            _start_wanted(shown, shown.model)
    with left:
        _left(shown)
    with right:
        if shown.model is not None:
            _right(shown, shown.model)
        else:
            st.caption("The inspector opens when there is a map.")


def _left(shown: Shown) -> None:
    state = s.session()
    which = measured.show(state)
    live = _live_kinds(shown)

    @st.fragment(run_every=TICK_SECONDS if live else None)
    def left() -> None:
        if _live_kinds(shown) != live:
            st.rerun()
        jobs = _jobs(shown)
        distances, losses = live_map(shown, jobs["measure"]), live_losses(shown, jobs["losses"])
        job = jobs[measured.KINDS[which]]
        map_view.facts(which, distances, losses, job)
        notes.job_error(job)
        if shown.model is None or not map_view.views(
            bench(), shown, jobs, which, distances, losses, shown.model, _chosen(state, shown.model)
        ):
            _nothing_yet(shown, which, job is not None and job.live)

    above = st.container()
    if shown.run is not None or live:
        with st.container(
            horizontal=True, vertical_alignment="center", horizontal_alignment="distribute", gap="xsmall"
        ):
            map_view.view_switch()  # before the view that it switches
            share.downloads(shown)
    with above:
        left()


def _jobs(shown: Shown) -> dict[str, JobState | None]:
    """Return this session's newest measurement of either map."""
    tools, state = bench(), s.session()
    return {kind: measure_job(tools, state, shown, kind) for kind in KINDS}


def _live_kinds(shown: Shown) -> tuple[str, ...]:
    """Return the kinds of measurement of this session that are waiting or running."""
    return tuple(kind for kind, job in _jobs(shown).items() if job is not None and job.live)


def _nothing_yet(shown: Shown, which: str, live: bool) -> None:
    with st.container(height=map_view.CHART_HEIGHT, border=True, vertical_alignment="center"):
        if live:
            st.caption("The map appears with the first batch.", text_alignment="center")
        elif which != "predicted" and shown.handle is not None:
            st.caption("The losses of this model are not measured yet: press Measure.", text_alignment="center")
        elif which != "predicted" and shown.model is not None:
            st.caption("No measured losses in this run; load the model to measure them.", text_alignment="center")
        elif shown.handle is not None:
            st.caption("No distances of this model on this text yet: press Measure.", text_alignment="center")
        else:
            st.caption("No model is loaded and no run is open: choose a model first.", text_alignment="center")


def _chosen(state: s.State, model: ModelInfo) -> Block | None:
    block = s.block(state)
    try:
        return block.check(model.num_layers) if block is not None else None
    except PlanError:
        return None


def _start_wanted(shown: Shown, model: ModelInfo) -> None:
    """Start what the person's choice asked for, before anything is drawn: they wait for its first number."""
    tools, state = bench(), s.session()
    block = _chosen(state, model)
    if block is not None:
        tools.wanted_rows[:] = [block.n]
        inspector.start_wanted(tools, shown, block, tools.state(s.job(state, EvaluateRequest.kind)))


def _right(shown: Shown, model: ModelInfo) -> None:
    tools, state = bench(), s.session()
    block = s.block(state)
    if block is None:
        st.caption("Click a cell of the map, or type a start layer and n.")
        return
    try:
        block.check(model.num_layers)
    except ShortvizError as error:
        notes.problem(str(error))
        return
    own = s.job(state, EvaluateRequest.kind)
    follow = tools.inspecting(shown.ref, block, s.evaluation(state), own) or own
    job = tools.state(follow)
    live = job is not None and job.live
    # The end of these is seen on the left, which redraws the page.
    scoring = not {"tasks", "questions"}.isdisjoint(_live_kinds(shown))

    @st.fragment(run_every=INSPECT_TICK_SECONDS if live else (TICK_SECONDS if scoring else None))
    def right() -> None:
        now = tools.state(follow)
        if live and (now is None or not now.live):
            st.rerun()
        distances = live_map(shown, measure_job(tools, state, shown))
        inspector.draw(tools, shown, model, block, now, distances)

    right()
    share.buttons(tools, shown, block)
    ledger.cell(tools, shown, block)  # below the buttons: its progress comes and goes
