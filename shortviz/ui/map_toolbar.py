"""The toolbar of the Map page: what to show and how, and the buttons that start and stop a measurement."""

from collections.abc import Mapping

import streamlit as st

from shortviz import charts, criteria
from shortviz.job_state import JobState
from shortviz.ui import actions, loss_actions, measured
from shortviz.ui import state as s
from shortviz.ui.looks import main_button
from shortviz.ui.resources import Bench
from shortviz.ui.shelves import run_key
from shortviz.ui.shown import Shown

SCALES = ("per n", "raw")
PALETTES = ("cividis", "viridis")


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
