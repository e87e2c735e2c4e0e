"""Advice on a page: a budget, the plan for it from what the run holds, and how sure that is."""

from typing import Final

import streamlit as st

from shortviz.analysis.advice import advise
from shortviz.errors import ShortvizError
from shortviz.records.advice import Advice, Budget, Candidate
from shortviz.records.formatting import count, counted, layers_text, percent, size
from shortviz.records.run import Run
from shortviz.ui.parts.notes import plain
from shortviz.ui.session import state as s
from shortviz.ui.session.shown import Shown

_BUDGETS: Final = {"layers": "Layers to remove", "bytes": "Weights, MB", "max_increase": "NLL increase, nats"}
_SHOWN_TIES: Final = 3


def draw(shown: Shown) -> None:
    """Draw the advice for a budget, folded away; choosing its plan makes it the page's cut."""
    run = shown.run
    if run is None:
        return
    with st.expander("Advice: what to cut for a budget, from what this run has measured", icon=":material/lightbulb:"):
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            kind = st.segmented_control(
                "Budget", list(_BUDGETS), format_func=lambda name: _BUDGETS[name], default="layers", required=True,
                key=s.BUDGET, persist_state="session",
            )  # fmt: skip
            budget = _limit(kind if kind in _BUDGETS else "layers", run)
        try:
            found = advise(run, budget)
        except ShortvizError as error:
            st.caption(plain(str(error)))
            return
        _words(found)
        st.button(
            "Look at this cut", icon=":material/arrow_upward:", key="take_advice",
            on_click=s.take_cut, args=(s.session(), found.plan.removed),
        )  # fmt: skip


def _limit(kind: str, run: Run) -> Budget:
    model = run.model
    key = f"{s.LIMIT}_{kind}"
    if kind == "bytes":
        least, most = 1, max(2, round(model.bytes / 1e6))
        value = st.number_input(
            "At most", least, most, value=max(1, round(0.85 * model.bytes / 1e6)), key=key, width=140,
            persist_state="session",
        )  # fmt: skip
        return Budget(bytes=int(value * 1e6))
    if kind == "max_increase":
        rise = st.number_input("At most", 0.01, 20.0, value=0.5, step=0.05, key=key, width=140, persist_state="session")
        return Budget(max_increase=float(rise))
    most = max(1, model.num_layers - 1)
    layers = st.number_input("At least", 1, most, value=max(1, most // 7), key=key, width=140, persist_state="session")
    return Budget(layers=int(layers))


def _words(advice: Advice) -> None:
    plan = advice.plan
    then = "".join(f", then {method.replace('_', ' ')}" for method in plan.methods)
    st.markdown(
        f"Remove **layers {layers_text(plan.removed)}** ({len(plan.removed)}){plain(then)}: {_cost(plan, advice)}. "
        f"Leaves {count(advice.parameters)} parameters, {size(advice.bytes)}."
    )
    lines = []
    if advice.ties:
        shown = [_tie(other, plan) for other in advice.ties[:_SHOWN_TIES]]
        more = len(advice.ties) - len(shown)
        lines.append(
            f"Not told apart from it on this text: {'; '.join(shown)}" + (f"; and {more} more." if more else ".")
        )
    if advice.expected is not None:
        low, high = (percent(share) for share in advice.expected)
        method = advice.expected_method.replace("_", " ")
        lines.append(f"Not repaired yet: {method} won back {low if low == high else f'{low} to {high}'} of other cuts.")
    st.caption(plain(" ".join([*lines, *advice.notes])))


def _cost(plan: Candidate, advice: Advice) -> str:
    if not advice.measured or plan.text is None:
        return "its loss was not measured"
    return (
        f"NLL **{plan.cost}** nats a token ({plain(plan.source)}, "
        f"{counted(plan.tokens, 'token')} in {counted(plan.windows, 'window')} of {plain(plan.text.source)}; "
        f"best of {advice.compared})"
    )


def _tie(other: Candidate, plan: Candidate) -> str:
    then = "".join(f", {method.replace('_', ' ')}" for method in other.methods if other.methods != plan.methods)
    return f"layers {layers_text(other.removed)}{then} ({other.cost})"
