"""The removal curve on the Map page: loss, perplexity or accuracy; questions are scored from here."""

from dataclasses import replace

import streamlit as st

from shortviz.analysis.curve import (
    AccuracyLine,
    RemovalCurve,
    accuracy_lines,
    curve_of_run,
    default_sizes,
    plans_to_score,
    strategies_of,
)
from shortviz.analysis.planning import parse_layers
from shortviz.errors import PlanError
from shortviz.figures import losses as loss_charts
from shortviz.records.formatting import duration
from shortviz.service import measure
from shortviz.service.queue import JobState
from shortviz.service.service import Service
from shortviz.ui.parts import notes, search
from shortviz.ui.parts import questions as task_picker
from shortviz.ui.parts.notes import chart, dark, missing
from shortviz.ui.session.shown import FONT, Shown

AXES = ("NLL", "perplexity", "accuracy")


def draw(bench: Service, shown: Shown, jobs: search.Jobs) -> None:
    """Draw the curve of every strategy, with greedy removal as far as it is, and questions scored on it."""
    greedy = search.greedy_so_far(shown, jobs)
    curve = curve_of_run(replace(shown.run, greedy=greedy)) if shown.run is not None else None
    if curve is None:
        missing(f"The removal curve is read off the measured map. {notes.MEASURE_LOSS}")
        return
    task_job = jobs["tasks"]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        axis = st.segmented_control(
            "y axis", AXES, default=AXES[0], required=True, key="curve_axis", label_visibility="collapsed"
        )
        search.further(shown, jobs)
        _task_button(bench, shown, curve, task_job)
    search.progress(bench, jobs, ("search", "curve", "tasks"))
    if axis == "accuracy":
        _accuracy(bench, shown, curve)
    else:
        _loss(curve, perplexity=axis == "perplexity")


def _loss(curve: RemovalCurve, *, perplexity: bool) -> None:
    figure = loss_charts.curve_figure(curve, perplexity=perplexity, top=curve.base_nll + 6.0, dark=dark())
    figure.update_layout(font={"family": FONT, "size": 11})
    chart(figure, "curve", loss_charts.curve_alt(curve))


def _accuracy(bench: Service, shown: Shown, curve: RemovalCurve) -> None:
    rows = task_picker.chosen_rows(bench)
    kept = shown.run.tasks if shown.run is not None else ()
    fingerprint = rows.fingerprint if rows is not None else (kept[-1].fingerprint if kept else "")
    scores = list(kept)
    if rows is not None and shown.ref is not None:
        cuts = {point.removed for line in curve.lines for point in line.points}
        found = (measure.known_score(bench, shown.ref, shown.run, cut, rows) for cut in cuts)
        scores = [score for score in found if score is not None]
    lines: tuple[AccuracyLine, ...] = accuracy_lines(curve, scores, fingerprint)
    if not lines:
        missing("No cut on this curve was scored yet: choose questions and score some.", height=400)
        return
    figure = loss_charts.accuracy_figure(lines, dark=dark())
    figure.update_layout(font={"family": FONT, "size": 11})
    chart(figure, "curve_accuracy", loss_charts.accuracy_alt(lines))


def _task_button(bench: Service, shown: Shown, curve: RemovalCurve, job: JobState | None) -> None:
    off = notes.why_off(shown.handle is None, False)
    with st.popover("Accuracy", icon=":material/quiz:", disabled=bool(off), help=off or None):
        task_picker.picker(bench, key="curve")
        rows = task_picker.chosen_rows(bench)
        if rows is None:
            return
        known = strategies_of(curve)
        labels = {line.strategy: line.label for line in curve.lines}
        chosen = st.multiselect(
            "Strategies", known, default=known[:1], format_func=labels.__getitem__, key="curve_strategies"
        )
        sizes = st.text_input(
            "Layers removed", value=", ".join(map(str, default_sizes(curve.num_layers))), key="curve_sizes"
        )
        try:
            plans = plans_to_score(curve, chosen, parse_layers(sizes))
        except PlanError as error:
            notes.problem(str(error))
            return
        left = [p for p in plans if measure.known_score(bench, shown.ref, shown.run, p, rows) is None]
        st.caption(_cost(bench, shown, len(left), len(rows.rows)))
        why = off or notes.why_off(False, job is not None and job.live)
        why = why or ("" if left else "These are scored already: choose other strategies or sizes.")
        st.button(
            "Score", icon=":material/play_arrow:", disabled=bool(why), help=why or None,
            on_click=task_picker.start, args=(shown, tuple(left)), key="score_curve",
        )  # fmt: skip


def _cost(bench: Service, shown: Shown, models: int, questions: int) -> str:
    """Return what scoring costs, in seconds too where these questions were scored before."""
    rows = task_picker.chosen_rows(bench)
    uncut = measure.known_score(bench, shown.ref, shown.run, (), rows) if rows is not None else None
    time = f", about {duration(models * uncut.seconds)} at most" if uncut is not None and uncut.seconds else ""
    return f"{questions:,} questions with each of {models} models that have no score yet{time}."
