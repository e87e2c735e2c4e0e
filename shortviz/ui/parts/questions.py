"""The form that names multiple-choice questions: a file or a data set of the hub, and which columns are what."""

from collections.abc import Callable
from functools import partial
from typing import Any

import streamlit as st

from shortviz.errors import ShortvizError
from shortviz.figures.losses import accuracy_words
from shortviz.records.formatting import counted, percent
from shortviz.records.plan import Block
from shortviz.records.text import TaskRows, TaskScore, TaskSpec
from shortviz.service import measure, policy
from shortviz.service.queue import JobState
from shortviz.service.requests import FetchRequest, TasksRequest
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.text.tables import TABLES
from shortviz.ui.parts import notes
from shortviz.ui.parts.notes import plain
from shortviz.ui.parts.texts import KINDS, offers_datasets, store_upload, uploaded
from shortviz.ui.session import state as s
from shortviz.ui.session.service import start_job
from shortviz.ui.session.shown import Shown

PROMPTS = {"Question alone": "{question}", "Question: ... Answer:": "Question: {question}\nAnswer:"}
DEFAULT_LIMIT = 100


def picker(bench: Service, *, key: str) -> None:
    """Draw the form, and what is chosen by it."""
    state = s.session()
    base = s.task(state) or TaskSpec(kind="file", value="-", limit=DEFAULT_LIMIT)
    kinds = ("file", "dataset") if offers_datasets() else ("file",)
    kind = st.segmented_control(
        "Source",
        kinds,
        format_func=KINDS.__getitem__,
        default=base.kind if base.kind in kinds else "file",
        required=True,
        key=f"{key}_task_source",
        label_visibility="collapsed",
    )
    upload, named = _dataset(base, key) if kind == "dataset" else _file(key)
    spec = _columns(key, base, named)
    fetched = upload is None and spec.keywords["kind"] == "dataset"
    empty = upload is None and not spec.keywords["value"]
    unloaded = fetched and s.ref(state) is None
    st.button(
        "Use these questions", icon=":material/check:",
        key=f"{key}_use", disabled=empty or unloaded,
        help="Choose a file, or name a data set, above." if empty
        else "Load a model first: the questions are fetched to be scored with it." if unloaded else None,
        on_click=_use, args=(bench, spec, upload),
    )  # fmt: skip
    _chosen(bench, key)


def chosen_rows(bench: Service) -> TaskRows | None:
    """Return the chosen questions; None where none are chosen, are not fetched yet, or can no longer be read."""
    spec = s.task(s.session())
    if spec is None:
        return None
    if spec.kind == "dataset":
        return measure.fetched_rows(bench, spec)
    try:
        return measure.rows_of(bench, spec)
    except ShortvizError as error:
        notes.problem(str(error))
        return None


def _file(key: str) -> tuple[Any, dict[str, Any]]:
    """Draw where a file is; returns (what was uploaded, the fields of the record that name it)."""
    upload = uploaded("Upload", TABLES, f"{key}_tasks")
    path = ""
    if policy.reads_paths(settings()):
        path = st.text_input("or a path on this machine", value="", key=f"{key}_task_path")
    return upload, {"kind": "file", "value": path.strip()}


def _dataset(base: TaskSpec, key: str) -> tuple[None, dict[str, Any]]:
    known = base if base.kind == "dataset" else TaskSpec(kind="dataset", value="")
    help_words = "Streamed: only the rows that are used are fetched."
    offered = policy.offered_datasets(settings())
    if offered is not None:
        name = st.selectbox("Data set id", offered, key=f"{key}_task_dataset", help=help_words)
    else:
        name = st.text_input(
            "Data set id", value=known.value, placeholder="allenai/ai2_arc", key=f"{key}_task_dataset", help=help_words
        )
    with st.container(horizontal=True, gap="small"):
        subset = st.text_input("Subset", value=known.subset or "", key=f"{key}_task_subset")
        split = st.text_input("Split", value=known.split, key=f"{key}_task_split")
    found = {"kind": "dataset", "value": (name or "").strip(), "subset": subset.strip() or None}
    return None, found | {"split": split.strip() or "validation"}


def _columns(key: str, base: TaskSpec, named: dict[str, Any]) -> "partial[TaskSpec]":
    """Draw which columns are what; returns the record, made once a button asks for it: its fields may be refused."""
    with st.container(horizontal=True, gap="small"):
        question = st.text_input("Column: question", value=base.question, key=f"{key}_question")
        choices = st.text_input("Choices (a list, or one each)", value=", ".join(base.choices), key=f"{key}_choices")
        label = st.text_input("Right choice", value=base.label, key=f"{key}_label")
    with st.container(horizontal=True, gap="small"):
        prompt = st.selectbox("Prompt", list(PROMPTS), key=f"{key}_prompt")
        first = st.selectbox("First choice is number", (0, 1), index=base.first_label, key=f"{key}_first")
        most = policy.most_rows(settings())
        limit = st.number_input("Questions, at most", 1, most, value=min(base.limit or most, most), key=f"{key}_limit")
    return partial(
        TaskSpec,
        **named,
        question=question.strip(),
        choices=tuple(name.strip() for name in choices.split(",")),
        label=label.strip(),
        first_label=first,
        prompt=PROMPTS[prompt],
        limit=int(limit),
    )


def _use(bench: Service, spec: Callable[..., TaskSpec], upload: Any) -> None:
    state = s.session()
    try:
        chosen = spec(value=str(store_upload(upload))) if upload is not None else spec()
        policy.check(settings(), chosen)
        if chosen.kind == "file":
            measure.rows_of(bench, chosen)
    except ShortvizError as error:
        state[s.TASK_PROBLEM] = str(error)
    else:
        s.set_task(state, chosen)
        ref = s.ref(state)
        if chosen.kind == "dataset" and ref is not None:
            start_job(FetchRequest(model=ref, task=chosen))
    st.rerun()  # the whole page, not only the fragment that the button is in


def _chosen(bench: Service, key: str) -> None:
    """Draw what is chosen, how far it is fetched, or why it cannot be used."""
    state = s.session()
    if s.task_problem(state):
        notes.problem(s.task_problem(state))
    job, spec = bench.state(s.job(state, FetchRequest.kind)), s.task(state)
    about = bench.context(job.id) if job is not None else None
    if job is not None and about is not None and getattr(about.request, "task", None) == spec:
        if job.live:
            st.caption(f":material/autorenew: {plain(notes.progress_words(job))}")
            st.button("Stop", icon=":material/stop:", on_click=bench.stop, args=(job.id,), key=f"{key}_stop")
        else:
            notes.job_error(job)
    rows = chosen_rows(bench)
    if rows is not None:
        chance = sum(1 / len(row.choices) for row in rows.rows) / len(rows.rows)
        st.caption(f"Chosen: {counted(len(rows.rows), 'question')} of {plain(rows.source)}; chance {percent(chance)}.")


# Multiple-choice questions in the inspector: the accuracy of the chosen block beside that of the uncut model.


def block_score(bench: Service, shown: Shown, block: Block, job: JobState | None) -> None:
    """Draw the accuracy of the uncut and the cut model on the chosen questions, or the button that scores them."""
    rows = chosen_rows(bench)
    if rows is None:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        plans = ((), block.layers)
        scores = [measure.known_score(bench, shown.ref, shown.run, plan, rows) for plan in plans]
        live = job is not None and job.live
        if live and job is not None:
            st.caption(f":material/autorenew: {plain(notes.progress_words(job))}")
            st.button("Stop", icon=":material/stop:", on_click=bench.stop, args=(job.id,), key="stop_tasks")
        elif None in scores:
            illegal = shown.model is not None and shown.model.illegal_reason(block) is not None
            why = notes.why_off(shown.handle is None, False)
            why = why or ("This block cannot be cut out, as is said above: choose another." if illegal else "")
            st.button(
                f"Score {len(rows.rows)} questions", icon=":material/play_arrow:", disabled=bool(why),
                help=why or "With the uncut and with the cut model.", on_click=start, args=(shown, plans),
                key="score_block",
            )  # fmt: skip
    found = [score for score in scores if score is not None]
    if len(found) == 2:
        st.markdown(f"Accuracy, uncut → cut **{accuracy_words(found[0])} → {accuracy_words(found[1])}**")
    if found:
        st.caption(_behind(found[-1]))
    notes.job_error(job)


def questions_button(bench: Service, *, key: str = "inspector") -> None:
    """Draw the button that opens the form for questions."""
    with st.popover("Questions", icon=":material/quiz:", help="Multiple-choice questions to score the models on."):
        picker(bench, key=key)


def _behind(score: TaskScore) -> str:
    """Return how much stands behind an accuracy, with the lines that it is to be read against."""
    cut = f" · {score.truncated} cut short to fit the model" if score.truncated else ""
    return f"{plain(score.behind)} · by length {percent(score.accuracy_norm, score.accuracy_norm_stderr)}{cut}"


def start(shown: Shown, plans: tuple[tuple[int, ...], ...]) -> None:
    """Score the chosen questions with these cuts."""
    spec = s.task(s.session())
    if shown.ref is not None and spec is not None:
        start_job(TasksRequest(model=shown.ref, task=spec, plans=plans), key=shown.key)
        st.rerun()
