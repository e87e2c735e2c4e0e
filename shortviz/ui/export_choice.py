"""Which model is exported: the cut one, or what a repair or a healing made of it."""

from pathlib import Path

import streamlit as st

from shortviz.job_state import JobState
from shortviz.ledger import LedgerStep
from shortviz.records import ModelInfo
from shortviz.ui import kept_models, ledger_view, notes, step_view
from shortviz.ui import state as s
from shortviz.ui.following import follow
from shortviz.ui.resources import Bench
from shortviz.ui.shown import Shown
from shortviz.ui.treating import LOOKING, ledger_of, treated
from shortviz.words import layers_text

PARTS = {"model": "The whole model", "adapter": "The adapter alone"}
TICK_SECONDS = 0.5


def choose(tools: Bench, shown: Shown, removed: tuple[int, ...]) -> tuple[str, ...]:
    """Draw the versions of a cut that can be exported, and return the methods of the chosen one; () is the cut itself.

    Those that are not in memory any more are named, with the button that brings them back.
    """
    ledger = ledger_of(shown.run, removed)
    steps = [step for step in ledger.steps if step.treatments] if ledger is not None else []
    here = [step for step in steps if treated(tools, shown.ref, removed, step) is not None]
    chosen: tuple[str, ...] = ()
    if here:
        by_methods = {step.methods: step for step in here}
        best = min(here, key=lambda step: step.evaluation.score.nll).methods
        options = [(), *by_methods]
        chosen = st.selectbox(
            "Which model",
            options,
            index=options.index(best),
            format_func=lambda methods: _label(by_methods.get(methods)),
            key=f"version_{layers_text(removed)}_{len(here)}",
        )
        if chosen in by_methods:
            st.caption(ledger_view.step_words(by_methods[chosen]))
        else:
            st.caption("The cut model as it is: nothing was repaired or trained.")
    job = tools.treating(LOOKING, shown.ref, removed)
    live = job is not None and job.live
    step_view.gone(tools, shown, removed, ledger, live=live)
    if live:
        follow(tools, job, _waiting, seconds=TICK_SECONDS)
    notes.job_error(job)
    return chosen


def _waiting(job: JobState | None) -> None:
    """Show how a model is brought back."""
    if job is not None:
        notes.job_progress(job)


def adapter_alone(tools: Bench, shown: Shown, removed: tuple[int, ...], methods: tuple[str, ...]) -> bool:
    """Return whether only what was learned is to be written; asks where that is kept."""
    if not kept_models.has_adapter(tools, shown.key, removed, methods):
        return False
    chosen = st.segmented_control(
        "What to write", list(PARTS), format_func=lambda name: PARTS[name], default="model", required=True,
        key=s.PART, persist_state="session",
    )  # fmt: skip
    if chosen == "adapter":
        st.caption("A LoRA adapter in peft's format. It fits this cut of this model and no other; its card says which.")
    return chosen == "adapter"


def step_of(shown: Shown, removed: tuple[int, ...], methods: tuple[str, ...]) -> LedgerStep | None:
    """Return the ledger's step of the model that is chosen; None for the cut itself."""
    ledger = ledger_of(shown.run, removed)
    found = [step for step in ledger.steps if methods and step.methods == methods] if ledger is not None else []
    return found[-1] if found else None


def _label(step: LedgerStep | None) -> str:
    return "Cut, nothing done after it" if step is None else step.label[:1].upper() + step.label[1:]


def name_of(model: ModelInfo, removed: tuple[int, ...], methods: tuple[str, ...] = ()) -> str:
    """Return the name of the model: what it was, which layers went, and what was done after."""
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(model.id).name).strip(".-") or "model"
    gone = layers_text(removed).replace(", ", "_")
    done = "".join(f"-{method.replace('_', '-')}" for method in methods)
    return f"{kept}-without-{gone[:60]}{done}"
