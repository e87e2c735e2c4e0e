"""The Map page: the answer and its slider, the map on the left, the inspector on the right; both follow their job."""

import streamlit as st

from shortviz.criteria.base import MEASURED, label
from shortviz.errors import PlanError, ShortvizError
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.records.text import TextSpec
from shortviz.service import measure
from shortviz.service.queue import JobState
from shortviz.service.requests import EvaluateRequest, MapRequest, MeasureRequest
from shortviz.service.service import Service
from shortviz.ui.pages import inspector, share
from shortviz.ui.parts import advice, ledger, notes, strip
from shortviz.ui.parts import map as map_view
from shortviz.ui.parts.notes import main_button
from shortviz.ui.parts.pointer import tall_box
from shortviz.ui.session import opened
from shortviz.ui.session import state as s
from shortviz.ui.session.service import bench, start_job
from shortviz.ui.session.shown import (
    SCALES,
    VIEWS,
    Shown,
    colour_of,
    colours,
    job_of,
    living,
    look,
    measure_job,
    scale_of,
    settle_block,
    start_of,
)

TICK_SECONDS = 1.0
"""A changed figure is sent and drawn anew: not oftener than a person needs."""
INSPECT_TICK_SECONDS = 0.3
KINDS = ("measure", "losses", "texts", "curve", "search", "tasks", "questions")
"""Jobs whose progress the left side shows."""


def draw() -> None:
    """Draw the page."""
    tools, state = bench(), s.session()
    shown = look(tools, state)
    if shown.error:
        notes.problem(shown.error)
    now = living(tools, state, shown)
    if shown.model is not None:
        settle_block(state, now.run, shown.model)
    answer = st.container(key="answer")  # below the block's inputs, which say what is chosen
    _toolbar(tools, shown, now)
    left, right = st.columns([1.15, 1], gap="medium")
    with right:
        if shown.model is not None:
            inspector.block_inputs(shown.model.num_layers)  # before the map, which outlines what they say
            _start_wanted(shown, shown.model)
    with answer:
        advice.draw(now.run, shown.model)
    with left:
        _left(shown)
    with right:
        if shown.model is not None:
            _right(shown, shown.model)
        else:
            st.caption("The inspector opens when there is a map.")


def _toolbar(tools: Service, shown: Shown, now: Shown) -> None:
    """Draw the choice of views, what colours the map, and the button that measures what is not measured yet."""
    state = s.session()
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.segmented_control("View", VIEWS, default=VIEWS[0], required=True, key=s.VIEW, bind="query-params", wrap=True)
        st.selectbox(
            "Colour by", colours(now.run), format_func=label, key=s.CRITERION, bind="query-params", width=215,
            help="What removing each block really costs, or what a criterion predicts of it.",
        )  # fmt: skip
        predicted = colour_of(state, now.run) not in MEASURED
        if scale_of(state, now.run) != state.get(s.SCALE, "rank"):
            state[s.SCALE] = "rank"
        st.segmented_control(
            "Scale", [name for name in SCALES if predicted or name != "difference"], format_func=SCALES.__getitem__,
            default="rank", required=True, key=s.SCALE, bind="query-params",
            help="The place among the blocks of one size, the value itself, or the place beside the measured one.",
        )  # fmt: skip
        st.space("stretch")
        _measure_button(tools, shown, now)


def _measure_button(tools: Service, shown: Shown, now: Shown) -> None:
    """Draw the button that measures the map as it is coloured, under what it will take; while it runs, Stop."""
    state = s.session()
    kind = job_of(state, now.run)
    job = measure_job(tools, state, shown, kind)
    on = shown.handle is not None and measure.goes_on(tools, _request(shown, kind), now.run)
    lacking = opened.is_lacking(state, s.evaluation(state) if kind == "losses" else s.calibration(state))
    with st.container(gap="xsmall", width=320, key="measure"):
        words, more = _takes(tools, shown, kind)
        st.caption(notes.plain(words), help=notes.plain(more) if more else None)
        if job is not None and job.live:
            st.button(
                "Stop", icon=":material/stop:", disabled=job.stopping, on_click=tools.stop, args=(job.id,),
                key="stop_button", width="stretch",
                help=f"{'It stops' if job.stopping else 'Stops'} after this batch; what is measured so far is kept.",
            )  # fmt: skip
            return
        why = notes.why_off(shown.handle is None, False)
        why = why or ("Give the text of this run first, on the Model page." if lacking else "")
        st.button(
            "Go on" if on else "Measure", icon=":material/play_arrow:", key="measure_button", width="stretch",
            type=main_button() if shown.distances is None or shown.bundled else "secondary",
            disabled=bool(why), on_click=_measure, args=(shown, kind),
            help=why if why
            else "From where it was stopped: what was measured is kept." if on
            else "Measures the loss without every block: a first look in a minute or two, then refined."
            if kind == "losses" else "Streams the calibration text through the model and fills the map in.",
        )  # fmt: skip


def _takes(tools: Service, shown: Shown, kind: str) -> tuple[str, str]:
    """Return the text, and how much of it, that Measure reads; and what becomes of the rest."""
    state, windows = s.session(), kind == "losses"
    spec = s.evaluation(state) if windows else s.calibration(state)
    try:
        words, more = measure.counts_of(tools, shown.ref, spec, shown.handle, windows=windows)
    except ShortvizError as error:  # told in full where the text is chosen, and by the job
        return f"Reads {_name(spec)}", notes.in_labels(str(error))
    return f"Reads {_name(spec)}, {words}", more


def _name(spec: TextSpec) -> str:
    return {"paste": "pasted text", "file": "your file"}.get(spec.kind, spec.value)


def _measure(shown: Shown, kind: str) -> None:
    state = s.session()
    if shown.ref is None or shown.handle is None:
        return
    key = opened.goes_into(state, shown.ref)
    if key != s.run_key(state):
        s.leave_run(state)
    start_job(_request(shown, kind), key=key, start=start_of(shown))


def _request(shown: Shown, kind: str) -> MeasureRequest | MapRequest:
    state = s.session()
    assert shown.ref is not None, "it is measured"
    assert shown.handle is not None, "it is measured"
    if kind == "losses":
        return MapRequest(model=shown.ref, text=s.evaluation(state), windows=measure.APP_WINDOWS)
    batch = measure.app_batch(shown.handle.info.device)
    return MeasureRequest(model=shown.ref, text=s.calibration(state), batch_size=batch)


def _left(shown: Shown) -> None:
    state, tools = s.session(), bench()
    live = _live_kinds(shown)

    @st.fragment(run_every=TICK_SECONDS if live else None)
    def left() -> None:
        if _live_kinds(shown) != live:
            st.rerun()
        jobs, now = _jobs(shown), living(tools, state, shown)
        job = jobs[job_of(state, now.run)]
        notes.job_error(job)
        if shown.model is None or not map_view.views(tools, now, jobs, shown.model, _chosen(state, shown.model)):
            _nothing_yet(shown, job is not None and job.live)
        with st.container(horizontal=True, vertical_alignment="top", gap="small"):
            map_view.facts(now.run, job)
            if now.run is not None:
                share.downloads(shown)

    left()


def _jobs(shown: Shown) -> dict[str, JobState | None]:
    """Return this session's newest measurement of either map."""
    tools, state = bench(), s.session()
    return {kind: measure_job(tools, state, shown, kind) for kind in KINDS}


def _live_kinds(shown: Shown) -> tuple[str, ...]:
    """Return the kinds of measurement of this session that are waiting or running."""
    return tuple(kind for kind, job in _jobs(shown).items() if job is not None and job.live)


def _nothing_yet(shown: Shown, live: bool) -> None:
    measured = job_of(s.session(), shown.run) == "losses"
    with st.container(key=tall_box("map"), border=True, vertical_alignment="center"):  # where the map will be
        if live:
            words = "The map appears with the first batch."
        elif shown.handle is not None:
            what = "The losses of this model are" if measured else "Distances of this model on this text are"
            words = f"{what} not measured yet: press Measure."
        elif shown.model is not None:
            what = "measured losses" if measured else "distances"
            words = f"No {what} in this run; load the model to measure them."
        elif shown.ref is not None:
            words = "This text is not measured yet: load the model to measure it."
        else:
            words = "No model is loaded and no run is open: choose a model first."
        st.caption(words, text_alignment="center")


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
    growing = not {"measure", "losses", "tasks", "questions"}.isdisjoint(_live_kinds(shown))

    @st.fragment(run_every=INSPECT_TICK_SECONDS if live else (TICK_SECONDS if growing else None))
    def right() -> None:
        now = tools.state(follow)
        if live and (now is None or not now.live):
            st.rerun()
        with st.container(gap="xsmall"):
            inspector.draw(tools, living(tools, state, shown), model, block, now)

    with st.container(gap="small"):
        right()
        share.buttons(tools, shown, block)
        ledger.cell(tools, living(tools, state, shown), block)  # below the buttons: its progress comes and goes
        st.fragment(strip.draw, run_every=INSPECT_TICK_SECONDS if live else None)(tools, shown, block)
