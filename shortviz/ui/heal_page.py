"""The Heal page: the ledger of the chosen cut, the buttons that add to it, the training as it goes, the texts."""

import streamlit as st

from shortviz.errors import PlanError
from shortviz.heal_settings import HealSettings
from shortviz.job_state import JobState
from shortviz.ledger import Ledger
from shortviz.records import ModelInfo, PrunePlan
from shortviz.ui import (
    advice_view,
    heal_live,
    inspector,
    ledger_view,
    notes,
    recipe_view,
    step_view,
    text_picker,
    treat_buttons,
)
from shortviz.ui import state as s
from shortviz.ui.bench import bench
from shortviz.ui.following import follow
from shortviz.ui.looks import main_button
from shortviz.ui.resources import Bench
from shortviz.ui.shown import Shown, look, settle_block
from shortviz.ui.treating import METHODS, Treating, cut_problem, known_ledger
from shortviz.ui.words import plain
from shortviz.words import layers_text

TICK_SECONDS = 1.0


def draw() -> None:
    """Draw the page."""
    tools, state = bench(), s.session()
    shown = look(tools, state)
    if shown.error:
        notes.problem(shown.error)
    if shown.model is None:
        st.caption("Choose a model first, on the Model page; then a block, on the Map page.")
        return
    settle_block(state, shown.distances, shown.model)
    inspector.block_inputs(shown.model.num_layers)
    removed = _cut(shown)
    problem = _problem(shown.model, removed)
    if problem:
        notes.problem(problem)
        return
    job = heal_live.newest(tools, shown, removed)
    _ledger(tools, shown, removed, job)
    _below(tools, shown, removed, live=job is not None and job.live)
    _actions(tools, shown, shown.model, removed, job)
    follow(tools, job, heal_live.job, seconds=heal_live.TICK_SECONDS)
    heal_live.continuations(tools, shown, removed, known_ledger(tools, shown, removed, s.evaluation(state)))
    advice_view.draw(shown)


def _problem(model: ModelInfo, removed: tuple[int, ...]) -> str:
    try:
        PrunePlan(num_layers=model.num_layers, removed=removed)
    except PlanError as error:
        return str(error)
    return cut_problem(model, removed)


def _cut(shown: Shown) -> tuple[int, ...]:
    """Return the cut that the page is about: the chosen block, or one of the run's ledgers, where one was chosen."""
    state = s.session()
    block = s.block(state)
    own = block.layers if block is not None else ()
    ledgers = [ledger.removed for ledger in (shown.run.ledgers if shown.run is not None else ())]
    cuts = list(dict.fromkeys([own, s.cut(state), *ledgers]))
    if len(cuts) < 2:
        return own
    picked = st.selectbox(
        "Cut",
        cuts,
        index=cuts.index(s.cut(state)),
        format_func=lambda cut: f"layers {layers_text(cut)} ({len(cut)} layers)" + (" · chosen block" * (cut == own)),
        key=f"heal_cut_{layers_text(s.cut(state))}",  # made anew where the cut was chosen elsewhere
        label_visibility="collapsed",
        width=420,
    )
    if picked != s.cut(state):
        s.set_cut(state, picked)
        st.rerun()
    return picked


def _ledger(tools: Bench, shown: Shown, removed: tuple[int, ...], job: JobState | None) -> None:
    """Draw the newest ledger: that of a job that has ended or is at work, or that of the run."""
    live = job is not None and job.live

    @st.fragment(run_every=TICK_SECONDS if live else None)
    def ledger() -> None:
        now = tools.state(job.id) if job is not None else None
        found: Ledger | None = None
        if now is not None and isinstance(now.record, Treating) and now.record.ledger is not None:
            found = now.record.ledger if now.record.ledger.removed == removed else None
        if found is None or not (now is not None and now.live):
            found = known_ledger(tools, look(tools, s.session()), removed, s.evaluation(s.session())) or found
        if found is None:
            st.caption(
                f"Not measured yet: what removing layers {layers_text(removed)} costs, and what comes back. "
                + (
                    "Repair or heal below; both measure it first."
                    if shown.handle is not None
                    else "Load the model first."
                )
            )
            return
        ledger_view.draw(found, key="ledger")

    ledger()


def _below(tools: Bench, shown: Shown, removed: tuple[int, ...], *, live: bool) -> None:
    """Draw what can be done with the models of the ledger."""
    found = known_ledger(tools, shown, removed, s.evaluation(s.session()))
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        step_view.gone(tools, shown, removed, found, live=live)
        step_view.questions(tools, shown, found, live=live)


def _actions(tools: Bench, shown: Shown, model: ModelInfo, removed: tuple[int, ...], job: JobState | None) -> None:
    state = s.session()
    live = job is not None and job.live
    off = shown.handle is None or live
    why = "Load the model first." if shown.handle is None else ("Another job is at work on this cut." if live else None)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        method = st.selectbox(
            "Repair, no training",
            list(METHODS),
            format_func=lambda name: METHODS[name],
            key=s.METHOD,
            persist_state="session",
            width=150,
            help="Seam refit: the layer before the cut is solved anew, and may take over removed neurons. "
            "Linear fold: a linear map is folded into it. "
            "Scale: one number for the layers after it.",
        )
        method = method if method in METHODS else next(iter(METHODS))
        st.button(
            "Repair", icon=":material/build:", disabled=off, help=why, key="repair_button",
            on_click=treat_buttons.start_repair, args=(tools, shown, removed, method),
        )  # fmt: skip
        name = recipe_view.preset_switch()
        first = st.checkbox(
            "Repair first", value=True, key=s.REPAIR_FIRST, persist_state="session",
            help="Begin the training from the repaired model.",
        )  # fmt: skip
        start = st.container(horizontal=True, width="content", gap="small")
    recipe = _settings(tools, state, name, model)
    with start:
        st.button(
            "Heal", icon=":material/healing:", type=main_button(), disabled=off or recipe is None, help=why,
            key="heal_button", on_click=treat_buttons.start_heal,
            args=(tools, shown, removed, recipe, method if first else ""),
        )  # fmt: skip
        st.button(
            "Stop", icon=":material/stop:", disabled=not live, key="stop_treating", help="Keeps the best so far.",
            on_click=tools.jobs.cancel, args=(job.id if job is not None else "",),
        )  # fmt: skip
        _shrink(tools, shown, model, removed, off, method)
    if recipe is not None:
        st.caption(plain(recipe_view.summary(recipe)))


def _shrink(tools: Bench, shown: Shown, model: ModelInfo, removed: tuple[int, ...], off: bool, method: str) -> None:
    with st.popover("Cut more", icon=":material/compress:", help="Cut, repair, measure again, and so on."):
        st.caption(
            "From the uncut model: the layer that costs least goes, the seam is repaired, every layer that is left is "
            "measured again, and so on. Layers are chosen on the training text; the ledger is scored on the other."
        )
        most = max(model.num_layers - 1, 1)
        left = min(max(model.num_layers - len(removed) - 1, 1), most)
        layers = st.number_input(
            f"Layers that are left, of {model.num_layers}", 1, most, value=left, key=f"{s.SHRINK_TO}_{left}"
        )
        st.button(
            "Shrink", icon=":material/compress:", disabled=off, key="shrink_button",
            on_click=treat_buttons.start_shrink, args=(tools, shown, int(layers), method),
        )  # fmt: skip


def _settings(tools: Bench, state: s.State, name: str, model: ModelInfo) -> HealSettings | None:
    left, right = st.columns([1.25, 1], gap="medium")
    with left, st.expander("Settings of the training", icon=":material/tune:"):
        recipe = recipe_view.settings(name, model)
    with right, st.expander("Text to fit and train on", icon=":material/article:"):
        text_picker.pick(tools, state, "training")
    return recipe
