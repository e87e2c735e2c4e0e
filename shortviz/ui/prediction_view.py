"""What work on the chosen model would take on this machine, told before anything is started; asked for by a button."""

import streamlit as st

from shortviz.job_state import JobState
from shortviz.memory import free_bytes
from shortviz.prediction_records import Prediction
from shortviz.records import ModelRef
from shortviz.ui import actions, notes
from shortviz.ui import state as s
from shortviz.ui.following import follow
from shortviz.ui.resources import Bench
from shortviz.ui.words import plain
from shortviz.words import duration, size

TICK_SECONDS = 0.5


def draw(tools: Bench, state: s.State, ref: ModelRef) -> None:
    """Show the button, then memory, disk and seconds for each kind of work."""
    job_id = s.job(state, "predict")
    context = tools.context(job_id or "")
    wanted = (ref, s.calibration(state), s.evaluation(state))
    if context is None or (context.ref, context.calibration, context.evaluation) != wanted:
        job_id = None

    def prediction(job: JobState | None) -> None:
        if job is None or not isinstance(job.result, Prediction):
            st.button(
                "Predict the seconds",
                icon=":material/timer:",
                key="predict_button",
                disabled=job is not None and job.live,
                help="One layer of each kind is made of random numbers and timed; no weight is loaded.",
                on_click=_start,
                args=(tools, ref),
            )
        if job is not None and job.live:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.caption(":material/hourglass_top: Timing a layer: " + notes.progress_words(job))
                st.button("Stop", on_click=notes.cancel, args=(tools, job.id), key="stop_predict")
        notes.job_error(job)
        if job is not None and isinstance(job.result, Prediction):
            _numbers(job.result)

    follow(tools, tools.state(job_id), prediction, seconds=TICK_SECONDS)


def _start(tools: Bench, ref: ModelRef) -> None:
    state = s.session()
    s.set_job(state, "predict", actions.start_predict(tools, ref, s.calibration(state), s.evaluation(state)))


def _numbers(found: Prediction) -> None:
    work = found.work
    known = "; reading is left out, for the weights are not on this machine yet" if found.load_seconds is None else ""
    with st.container(border=True, gap="small"):
        with st.container(horizontal=True, gap="medium"):
            kinds = {} if found.load_seconds is None else {"Load": found.load_seconds}
            kinds |= {"Distances": found.measure_seconds, "Streamed": found.streamed_seconds}
            kinds |= {"Losses": found.map_seconds, "Repair": found.repair_seconds, "Heal": found.heal_seconds}
            for label, seconds in kinds.items():
                st.metric(label, duration(seconds), width="content")
        st.caption(
            plain(
                f"Predicted for {work.rows} rows of {work.row_tokens} tokens, {work.windows} windows of {work.window} "
                f"for all losses, {work.heal_steps} steps of healing; from one layer of each kind, timed on a machine "
                f"as busy as now{known}. Streamed from its files the model takes "
                f"{size(found.streamed_memory_bytes)} of memory and {size(found.states_bytes)} of states, and "
                f"{size(free_bytes())} is free; an export of all layers takes {size(found.disk_bytes)} of disk."
            )
        )
