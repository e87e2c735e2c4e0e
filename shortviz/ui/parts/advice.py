"""The answer on top of the map: a slider for how much to remove, and the sentence that says at what price."""

import math
from typing import Final

import streamlit as st

from shortviz.analysis.advice import advise
from shortviz.errors import ShortvizError
from shortviz.records.advice import Advice
from shortviz.records.formatting import counted, factor, layer_words, layers_text, percent, runs, times
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.ui.parts.notes import plain
from shortviz.ui.session import state as s
from shortviz.ui.session.shown import BUDGETS, advised, budget_kind, budget_of, most_limit, usual_limit

_FACTORS: Final = (1.05, 1.1, 1.2, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 5.0, 10.0)
_SHOWN_TIES: Final = 3
_SHOWN_NEEDED: Final = 3
_NOTHING: Final = "What can go, and at what price, is said here once something is measured."
_OFF: Final = "Nothing is measured yet: press Measure first."


def draw(run: Run | None, model: ModelInfo | None) -> None:
    """Draw the slider and what it comes to; moving it moves the chosen cell.

    The slider stands there before anything is measured, so that nothing below moves when the first numbers come.
    """
    if run is not None and run.distances is None and run.losses is None:
        run = None
    if model is None:
        st.caption(_NOTHING)
        return
    state, why = s.session(), _OFF if run is None else None
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small", width=430):
            _slider(budget_kind(state), model, run)
            st.selectbox(
                "By", list(BUDGETS), format_func=BUDGETS.__getitem__, key=s.BUDGET, persist_state="session", width=130,
                on_change=_moved, args=(run,), disabled=run is None, help=why,
            )  # fmt: skip
        if run is None:
            st.caption(_NOTHING, width="stretch")
            return
        try:
            found = advise(run, budget_of(state, run), bare=True)
        except ShortvizError as error:
            st.caption(plain(str(error)), width="stretch")
            return
        with st.container(gap=None, width="stretch"):
            st.markdown(_sentence(found, run), help=plain(_why(found)) or None)
            st.caption(" ".join(filter(None, (_behind(found, run), _needed(run)))))
        if s.cut(state) != found.plan.removed:
            st.button("Show it", icon=":material/my_location:", key="take_advice", on_click=_moved, args=(run,))


def _slider(kind: str, model: ModelInfo, run: Run | None) -> None:
    """Draw the slider of this kind of budget, which answers once there is a run."""
    key, why = f"{s.LIMIT}_{kind}", _OFF if run is None else None
    if kind == "max_increase":
        st.select_slider(
            "Remove as much as costs at most", _FACTORS, value=1.5, format_func=lambda factor: f"× {factor:g}",
            key=key, persist_state="session", on_change=_moved, args=(run,), disabled=run is None, help=why,
        )  # fmt: skip
        return
    unit = "layers" if kind == "layers" else "%% of the weights"
    st.slider(
        "Remove", 1, most_limit(model, kind), value=usual_limit(model, kind), format=f"%d {unit}", key=key,
        persist_state="session", on_change=_moved, args=(run,), disabled=run is None, help=why,
    )  # fmt: skip


def _moved(run: Run | None) -> None:
    state = s.session()
    if run is not None and (removed := advised(state, run)):
        s.take_cut(state, removed)
        s.want(state, "numbers")


def _sentence(found: Advice, run: Run) -> str:
    removed = found.plan.removed
    blocks = runs(removed)
    name = layer_words(*blocks[0]) if len(blocks) == 1 else f"layers {layers_text(removed)}"
    saved = f"{percent(1 - found.bytes / run.model.bytes)} smaller"
    if not found.measured:
        return f"Without **{name}**: {saved}. What that costs is **predicted, not measured**."
    return f"Without **{name}**: **perplexity {times(found.plan.increase, found.plan.stderr)}**, **{saved}**."


def _behind(found: Advice, run: Run) -> str:
    """Return how much text the sentence rests on, and what a repair makes of it."""
    if not found.measured:
        return "Chosen by how little it changes the residual stream: measure it before you rely on it."
    words = [f"Measured on {counted(found.plan.tokens, 'token')}"]
    words[0] += f", not told apart from {counted(len(found.ties), 'other cut')}." if found.ties else "."
    if found.repaired is not None:
        words.append(f"Repaired: {factor(found.repaired.increase)}.")
    elif found.expected is not None:
        low, high = (percent(share) for share in found.expected)
        share = high if low == high else f"{low.removesuffix(' %')} to {high}"
        cuts = [ledger.removed for ledger in run.ledgers if any(step.name == "repaired" for step in ledger.steps)]
        other = f"the cut of layers {layers_text(cuts[0])}" if len(cuts) == 1 else "other cuts"
        words.append(f"Repairing {other} won back {share} of what was lost.")
    return plain(" ".join(words))


def _needed(run: Run) -> str:
    """Return which single layers cost most where they were measured: what the sentence above is to be held against."""
    layers = run.model.num_layers
    if run.losses is None or layers <= 2 * _SHOWN_NEEDED:
        return ""
    alone = [(*run.losses.increase.at(Block(start=layer, n=1)), layer) for layer in range(layers)]
    if not all(math.isfinite(increase) for increase, _, _ in alone):
        return ""
    most = sorted(alone)[-_SHOWN_NEEDED:]
    least, error, _ = most[0]
    needed = layers_text([layer for *_, layer in most])
    return f"Needed most, by the map: layers {needed}, each alone perplexity {factor(least, error)} or more."


def _why(found: Advice) -> str:
    """Return what limits the answer, and what comes near it."""
    shown = [f"layers {layers_text(other.removed)} ({other.cost} nats)" for other in found.ties[:_SHOWN_TIES]]
    ties = [f"Not told apart from it on this text: {'; '.join(shown)}."] if shown else []
    return " ".join([*ties, *found.notes])
