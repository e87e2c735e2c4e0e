"""Repair and Heal beside the numbers of a cut: the map's inspector, and what both pages start."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from shortviz.heal_settings import HealSettings
from shortviz.job_state import JobState
from shortviz.records import Block
from shortviz.ui import ledger_view, notes, treat_actions
from shortviz.ui import state as s
from shortviz.ui.address import go_to
from shortviz.ui.following import follow
from shortviz.ui.resources import Bench
from shortviz.ui.shelves import run_key
from shortviz.ui.shown import Shown
from shortviz.ui.treating import METHODS, Treating, ledger_of
from shortviz.ui.words import plain

TICK_SECONDS = 1.0


def _start(tools: Bench, shown: Shown, kind: str, start: Callable[..., str], what: Any, **settings: Any) -> None:
    """Start work on the model that is shown, of which `what` is cut; nothing where none is."""
    state, ref = s.session(), shown.ref
    if ref is None:
        return
    key = run_key(ref, s.calibration(state))
    texts = s.evaluation(state), s.training(state)
    prompt = str(state.get(s.PROMPT, ""))
    job_id = start(
        tools, ref, what, *texts, key=key, known=shown.run, prompt=prompt, task=s.task(state), **settings
    )  # fmt: skip
    s.leave_run(state)
    s.set_job(state, kind, job_id)


def start_repair(tools: Bench, shown: Shown, removed: tuple[int, ...], method: str) -> None:
    """Start the repair of a cut of the model that is shown."""
    _start(tools, shown, "repair", treat_actions.start_repair, removed, method=method)


def start_heal(
    tools: Bench, shown: Shown, removed: tuple[int, ...], recipe: HealSettings | None, repair_first: str
) -> None:
    """Start the healing of a cut of the model that is shown."""
    if recipe is not None:
        _start(tools, shown, "heal", treat_actions.start_heal, removed, recipe=recipe, repair_first=repair_first)


def start_shrink(tools: Bench, shown: Shown, to_layers: int, method: str) -> None:
    """Start cutting the model that is shown layer by layer, with a repair after each."""
    _start(tools, shown, "shrink", treat_actions.start_shrink, to_layers, method=method)


def buttons(tools: Bench, shown: Shown, block: Block) -> None:
    """Draw the buttons that repair the chosen block, or take it to the Heal page."""
    job = tools.treating(("repair",), shown.ref, block.layers)
    live = job is not None and job.live
    why = "Load the model first." if shown.handle is None else "Solves the layer before the cut anew, without training."
    found = s.session().get(s.METHOD)
    method = found if found in METHODS else next(iter(METHODS))
    st.button(
        "Repair", icon=":material/build:", disabled=shown.handle is None or live, help=why, key="repair_cell",
        on_click=start_repair, args=(tools, shown, block.layers, method),
    )  # fmt: skip
    if st.button("Heal", icon=":material/healing:", key="to_heal"):
        go_to(tools, s.session(), "pages/heal.py")


def cell(tools: Bench, shown: Shown, block: Block) -> None:
    """Draw what repairs and healings made of the chosen block, on the same windows, and a repair that is at work."""

    def treated(now: JobState | None) -> None:
        if now is not None:
            notes.job_error(now)
            if now.live:
                notes.job_progress(now)
            elif isinstance(now.record, Treating) and now.record.note:
                st.caption(f":material/info: {plain(now.record.note)}")
        ledger = ledger_of(shown.run, block.layers)
        line = ledger_view.steps_line(ledger) if ledger is not None else ""
        if ledger is not None and line:
            every = [ledger_view.step_words(step) for step in ledger.steps if step.treatments]
            st.markdown(f":small[:material/build: {line}]", help="  \n".join(every))

    follow(tools, tools.treating(("repair",), shown.ref, block.layers), treated, seconds=TICK_SECONDS)
