"""Multiple-choice questions in the inspector: the accuracy of the chosen block beside that of the uncut model."""

from collections.abc import Sequence

import streamlit as st

from shortviz.job_state import JobState
from shortviz.loss_charts import accuracy_words
from shortviz.records import Block, TaskScore
from shortviz.ui import notes, task_actions
from shortviz.ui import state as s
from shortviz.ui.resources import Bench
from shortviz.ui.shown import Shown
from shortviz.ui.task_picker import chosen_rows, picker
from shortviz.ui.words import plain
from shortviz.words import percent


def block_score(bench: Bench, shown: Shown, block: Block, job: JobState | None) -> None:
    """Draw the accuracy of the uncut and the cut model on the chosen questions, or the button that scores them."""
    rows = chosen_rows(bench)
    if rows is None:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        plans = ((), block.layers)
        scores = [task_actions.known_score(bench, shown.ref, shown.run, plan, rows) for plan in plans]
        live = job is not None and job.live
        if live and job is not None:
            st.caption(f":material/autorenew: {plain(notes.progress_words(job))}")
            st.button("Stop", icon=":material/stop:", on_click=notes.cancel, args=(bench, job.id), key="stop_tasks")
        elif None in scores:
            illegal = shown.model is not None and shown.model.illegal_reason(block) is not None
            st.button(
                f"Score {len(rows.rows)} questions",
                icon=":material/play_arrow:",
                disabled=shown.handle is None or illegal,
                help="Load a model first." if shown.handle is None else "With the uncut and with the cut model.",
                on_click=start,
                args=(bench, shown, plans),
                key="score_block",
            )
    found = [score for score in scores if score is not None]
    if len(found) == 2:
        st.markdown(f"Accuracy, uncut → cut **{accuracy_words(found[0])} → {accuracy_words(found[1])}**")
    if found:
        st.caption(_behind(found[-1]))
    notes.job_error(job)


def questions_button(bench: Bench, *, key: str = "inspector") -> None:
    """Draw the button that opens the form for questions."""
    with st.popover("Questions", icon=":material/quiz:", help="Multiple-choice questions to score the models on."):
        picker(bench, key=key)


def _behind(score: TaskScore) -> str:
    """Return how much stands behind an accuracy, with the lines that it is to be read against."""
    cut = f" · {score.truncated} cut short to fit the model" if score.truncated else ""
    return f"{plain(score.behind)} · by length {percent(score.accuracy_norm, score.accuracy_norm_stderr)}{cut}"


def start(bench: Bench, shown: Shown, plans: Sequence[tuple[int, ...]]) -> None:
    """Score the chosen questions with these cuts."""
    state = s.session()
    spec = s.task(state)
    if shown.ref is not None and spec is not None:
        s.set_job(state, "tasks", task_actions.start_tasks(bench, shown.ref, spec, plans, shown.key))
        st.rerun()
