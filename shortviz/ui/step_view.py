"""Below a ledger: bringing back models that are not in memory any more, and the questions that every step is asked."""

import streamlit as st

from shortviz.ledger import Ledger, LedgerStep
from shortviz.ui import kept_models, step_actions, task_picker, task_view
from shortviz.ui import state as s
from shortviz.ui.resources import Bench
from shortviz.ui.shelves import run_key
from shortviz.ui.shown import Shown
from shortviz.ui.treating import treated
from shortviz.ui.words import plain
from shortviz.words import layers_text


def gone(tools: Bench, shown: Shown, removed: tuple[int, ...], ledger: Ledger | None, *, live: bool) -> None:
    """Name the treated models that are not in memory, each with the button that brings it back where it is kept."""
    steps = [step for step in ledger.steps if step.treatments] if ledger is not None else []
    away = [step for step in steps if treated(tools, shown.ref, removed, step) is None]
    here = [step for step in away if kept_models.is_kept(tools, shown.key, removed, step.methods)]
    for number, step in enumerate(here):
        st.button(
            f"Bring back: {plain(step.label)}", icon=":material/restore:", key=f"bring_{layers_text(removed)}_{number}",
            disabled=shown.ref is None or live, on_click=_bring_back, args=(tools, shown, removed, step),
            help="Load the model first." if shown.ref is None else
            "Its own weights lie beside the run: it is put into memory again as it was, without training.",
        )  # fmt: skip
    lost = ", ".join(plain(step.label) for step in away if step not in here)
    if lost:
        st.caption(f":material/info: Not in memory, and not kept beside this run: {lost}. Make it again to use it.")


def _bring_back(tools: Bench, shown: Shown, removed: tuple[int, ...], step: LedgerStep) -> None:
    if shown.ref is not None and shown.key is not None:
        job_id = step_actions.start_bring_back(tools, shown.ref, removed, step, shown.key)
        s.set_job(s.session(), "bring", job_id)


def questions(tools: Bench, shown: Shown, ledger: Ledger | None, *, live: bool) -> None:
    """Draw the choice of questions, and the button that asks them of every step that is there."""
    task_view.questions_button(tools, key="heal")
    rows = task_picker.chosen_rows(tools)
    if rows is None:
        return
    missing = [] if ledger is None else [step for step in ledger.steps if _unasked(ledger, step, rows.fingerprint)]
    if ledger is None or not missing:
        return
    st.button(
        f"Score {len(rows.rows)} questions", icon=":material/play_arrow:", key="ask_steps",
        disabled=shown.ref is None or live, on_click=_ask, args=(tools, shown, ledger),
        help="Load the model first." if shown.ref is None else
        "Asks the model of every step that is in memory or kept; repairing and healing ask them too.",
    )  # fmt: skip


def _unasked(ledger: Ledger, step: LedgerStep, fingerprint: str) -> bool:
    found = ledger.task(step)
    return found is None or found.fingerprint != fingerprint


def _ask(tools: Bench, shown: Shown, ledger: Ledger) -> None:
    state = s.session()
    spec = s.task(state)
    if shown.ref is None or spec is None:
        return
    key = run_key(shown.ref, s.calibration(state))
    job_id = step_actions.start_questions(
        tools, shown.ref, ledger, spec, key=key, kept_in=shown.key, known=shown.run
    )  # fmt: skip
    s.leave_run(state)
    s.set_job(state, "ask", job_id)
