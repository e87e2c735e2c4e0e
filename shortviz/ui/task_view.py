"""Multiple-choice questions on the page: choosing them, and the accuracy of the chosen block in the inspector."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import streamlit as st

from shortviz import policy
from shortviz.errors import ShortvizError
from shortviz.job_state import JobState
from shortviz.loss_charts import accuracy_words
from shortviz.records import Block, TaskRows, TaskScore, TaskSpec
from shortviz.settings import settings
from shortviz.task_rows import OPTIONS
from shortviz.ui import notes, task_actions
from shortviz.ui import state as s
from shortviz.ui.resources import Bench
from shortviz.ui.shown import Shown
from shortviz.ui.text_picker import store_upload
from shortviz.ui.words import plain, share

PROMPTS = {"Question alone": "{question}", "Question: ... Answer:": "Question: {question}\nAnswer:"}
DEFAULT_LIMIT = 100


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


def questions_button(bench: Bench) -> None:
    """Draw the button that opens the form for questions."""
    with st.popover("Questions", icon=":material/quiz:", help="Multiple-choice questions to score both models on."):
        picker(bench, key="inspector")


def _behind(score: TaskScore) -> str:
    """Return how much stands behind an accuracy, with the lines that it is to be read against."""
    cut = f" · {score.truncated} cut short to fit the model" if score.truncated else ""
    return (
        f"{score.questions:,} questions of {plain(score.source)} · by length {share(score.accuracy_norm)} · chance "
        f"{share(score.chance)} · always the most frequent label {share(score.majority)}{cut}"
    )


def start(bench: Bench, shown: Shown, plans: Sequence[tuple[int, ...]]) -> None:
    """Score the chosen questions with these cuts."""
    state = s.session()
    spec = s.task(state)
    if shown.ref is not None and spec is not None:
        s.set_job(state, "tasks", task_actions.start_tasks(bench, shown.ref, spec, plans, shown.key))
        st.rerun()


def chosen_rows(bench: Bench) -> TaskRows | None:
    """Return the chosen questions; None where none are chosen or they can no longer be read, which is told."""
    spec = s.task(s.session())
    if spec is None:
        return None
    try:
        return task_actions.rows_of(bench, spec)
    except ShortvizError as error:
        notes.problem(str(error))
        return None


def picker(bench: Bench, *, key: str) -> None:
    """Draw the form that names a file of questions and says which of its columns are what."""
    state = s.session()
    known = s.task(state)
    base = known or TaskSpec(kind="file", value="-", limit=DEFAULT_LIMIT)
    upload = st.file_uploader("Upload (.jsonl, .csv, .parquet)", type=["jsonl", "csv", "parquet"], key=f"{key}_tasks")
    path = "" if settings().is_hosted else st.text_input("or a path on this machine", value="", key=f"{key}_task_path")
    with st.container(horizontal=True, gap="small"):
        question = st.text_input("Column: question", value=base.question, key=f"{key}_question")
        choices = st.text_input("Choices (a list, or one each)", value=", ".join(base.choices), key=f"{key}_choices")
        label = st.text_input("Right choice", value=base.label, key=f"{key}_label")
    with st.container(horizontal=True, gap="small"):
        prompt = st.selectbox("Prompt", list(PROMPTS), key=f"{key}_prompt")
        first = st.selectbox("First choice is number", (0, 1), index=base.first_label, key=f"{key}_first")
        most = settings().max_rows if settings().is_hosted else 100_000
        limit = st.number_input("Questions, at most", 1, most, value=min(base.limit or most, most), key=f"{key}_limit")
    spec = partial(
        TaskSpec,
        kind="file",
        question=question.strip(),
        choices=tuple(name.strip() for name in choices.split(",")),
        label=label.strip(),
        first_label=first,
        prompt=PROMPTS[prompt],
        limit=int(limit),
    )
    st.button(
        "Use these questions",
        icon=":material/check:",
        key=f"{key}_use",
        disabled=upload is None and not path.strip(),
        on_click=_use,
        args=(bench, spec, upload, path.strip()),
    )
    if s.task_problem(state):
        notes.problem(s.task_problem(state))
    rows = chosen_rows(bench)
    if rows is not None:
        chance = sum(1 / len(row.choices) for row in rows.rows) / len(rows.rows)
        st.caption(f"Chosen: {len(rows.rows):,} questions of {plain(rows.source)}; chance {share(chance)}.")


def _use(bench: Bench, spec: Callable[..., TaskSpec], upload: Any, path: str) -> None:
    state = s.session()
    try:
        chosen = spec(value=str(store_upload(upload)) if upload is not None else path)
        policy.check(settings(), chosen)
        task_actions.rows_of(bench, chosen)
    except ShortvizError as error:
        s.refuse_task(state, _in_the_form(str(error)))
    else:
        s.set_task(state, chosen)
    st.rerun()  # the whole page, not only the fragment that the button is in


def _in_the_form(problem: str) -> str:
    """Return the sentence with the names of this form's fields, not those of the command line."""
    names = {OPTIONS: "the columns above", "--choices": "the choices above", "--label": "the right choice above"}
    for option, name in names.items():
        problem = problem.replace(f"with {option}", f"in {name}").replace(option, name)
    return problem
