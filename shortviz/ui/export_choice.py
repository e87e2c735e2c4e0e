"""Which model is exported: the cut one, or what a repair or a healing made of it."""

from pathlib import Path

import streamlit as st

from shortviz.ledger import LedgerStep
from shortviz.planning import layers_text
from shortviz.records import ModelInfo
from shortviz.ui import ledger_view
from shortviz.ui.resources import Bench
from shortviz.ui.shown import Shown
from shortviz.ui.treating import ledger_of, treated
from shortviz.ui.words import plain


def choose(tools: Bench, shown: Shown, removed: tuple[int, ...]) -> tuple[str, ...]:
    """Draw the versions of a cut that can be exported, and return the methods of the chosen one; () is the cut itself.

    Treated models live in memory only: those that are gone are named, with what brings them back.
    """
    ledger = ledger_of(shown.run, removed)
    steps = [step for step in ledger.steps if step.treatments] if ledger is not None else []
    here = [step for step in steps if treated(tools, shown.ref, removed, step) is not None]
    gone = [step for step in steps if step not in here]
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
    if gone:
        names = ", ".join(plain(step.label) for step in gone)
        st.caption(f":material/info: Not in memory any more: {names}. Make it again on the Heal page to export it.")
    return chosen


def _label(step: LedgerStep | None) -> str:
    return "Cut, nothing done after it" if step is None else step.label[:1].upper() + step.label[1:]


def name_of(model: ModelInfo, removed: tuple[int, ...], methods: tuple[str, ...] = ()) -> str:
    """Return the name of the model: what it was, which layers went, and what was done after."""
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(model.id).name).strip(".-") or "model"
    gone = layers_text(removed).replace(", ", "_")
    done = "".join(f"-{method.replace('_', '-')}" for method in methods)
    return f"{kept}-without-{gone[:60]}{done}"
