"""The Heal page: the ledger of the chosen cut, the buttons that add to it, the training as it goes, the texts."""

from collections.abc import Mapping

import streamlit as st

from shortviz.errors import PlanError
from shortviz.figures import ledger as ledger_charts
from shortviz.records.formatting import counted, layers_text
from shortviz.records.heal import HealHistory, OwnText, preset
from shortviz.records.ledger import Ledger, LedgerStep
from shortviz.records.model import ModelInfo
from shortviz.records.plan import PrunePlan, Removal
from shortviz.service import kept, policy
from shortviz.service.ledger import METHODS, Treating, cut_problem, known_ledger, text_key, treated
from shortviz.service.queue import JobState
from shortviz.service.requests import (
    AskRequest,
    BringBackRequest,
    Change,
    ContinueRequest,
    EvidenceRequest,
    HealRequest,
    RepairRequest,
    ShrinkRequest,
)
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.text.tokens import FIT_TOKENS
from shortviz.ui.pages import inspector
from shortviz.ui.parts import ledger as ledger_view
from shortviz.ui.parts import notes, texts
from shortviz.ui.parts import recipe as recipe_view
from shortviz.ui.parts.notes import main_button, plain
from shortviz.ui.session import state as s
from shortviz.ui.session.service import bench, follow
from shortviz.ui.session.shown import FONT, Shown, look, settle_block

# What moves on the Heal page: the job at work with its loss curve, and the continuations as they are written.


def newest(tools: Service, shown: Shown, removed: tuple[int, ...]) -> JobState | None:
    """Return the job that the page follows: a live one on this cut, a live shrinking, or the last that has ended."""
    adding = (RepairRequest.kind, HealRequest.kind)
    found = [tools.treating(adding, shown.ref, removed), tools.treating((ShrinkRequest.kind,), shown.ref, ())]
    jobs = [job for job in found if job is not None]
    looking = tools.treating((AskRequest.kind, BringBackRequest.kind, EvidenceRequest.kind), shown.ref, removed)
    if looking is not None and (looking.live or looking.state == "failed"):  # its end hides no training's curve
        jobs.append(looking)
    return max(jobs, key=lambda job: (job.live, job.created), default=None)


def draw_job(now: JobState | None) -> None:
    """Draw a job while it runs, and how it ended."""
    if now is None:
        return
    notes.job_error(now)
    if now.live:
        st.caption(plain(now.title))
        notes.job_progress(now)
    found = now.record if isinstance(now.record, Treating) else None
    if found is None:
        return
    if found.note and not now.live:
        st.info(plain(found.note), icon=":material/info:")
    if now.kind == ShrinkRequest.kind:
        _shrunk(now, found)
    if found.history is not None and found.history.points:
        _curve(found.history)


def _shrunk(job: JobState, found: Treating) -> None:
    """Say which layers a shrinking has removed so far; at its end, offer to look at that cut."""
    if not found.removed:
        return
    if job.live:
        st.caption(f"Removed so far: layers {layers_text(found.removed)}.")
    elif found.removed != s.cut(s.session()):
        st.button(
            f"Look at the cut of layers {layers_text(found.removed)}", icon=":material/arrow_upward:",
            key="take_shrunk", on_click=s.take_cut, args=(s.session(), found.removed),
        )  # fmt: skip


def _curve(history: HealHistory) -> None:
    alt = ledger_charts.healing_alt(history)
    figure = ledger_charts.healing_figure(history, st.context.theme.type == "dark")
    figure.update_layout(font={"family": FONT})
    st.plotly_chart(figure, theme=None, key="healing_chart", config={"displayModeBar": False}, alt=alt)
    last = history.points[-1]
    speed = f" {last.tokens_per_second:,.0f} tokens/s." if last.tokens_per_second else ""
    st.caption(f"{plain(alt)}{speed}")


def continuations(tools: Service, shown: Shown, removed: tuple[int, ...], ledger: Ledger | None) -> None:
    """Draw the prompt and what the model of every step makes of it, side by side."""
    state = s.session()
    why = notes.why_off(shown.handle is None, False)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.text_input(
            "Prompt, continued by every model", key=s.PROMPT, max_chars=2000, persist_state="session",
            disabled=bool(why), help=why or None,
        )  # fmt: skip
        st.button(
            "Run", icon=":material/play_arrow:", disabled=bool(why), key="run_continuations",
            help=why or "Let every model that is in memory continue the prompt.",
            on_click=_write, args=(tools, shown, removed),
        )  # fmt: skip
    prompt = str(state.get(s.PROMPT, ""))

    def written(now: JobState | None) -> None:
        notes.job_error(now)
        if now is not None and now.live:
            st.button("Stop", icon=":material/stop:", on_click=tools.stop, args=(now.id,), key="stop_continuations")
        steps = ledger.steps if ledger is not None else ()
        for column, step in zip(st.columns(max(len(steps), 1), gap="small"), steps, strict=False):
            with column, st.container(height=132, border=True, gap=None):
                st.caption(plain(step.label[:1].upper() + step.label[1:]))
                st.text(
                    _text(tools, shown, removed, ledger, step, prompt)
                    or ("…" if now is not None and now.live else _missing(tools, shown, removed, step))
                )

    follow(tools, tools.state(s.job(state, "continuations")), written, seconds=TICK_SECONDS)


def _write(tools: Service, shown: Shown, removed: tuple[int, ...]) -> None:
    state = s.session()
    if shown.ref is not None:
        asked = ContinueRequest(
            model=shown.ref, removal=Removal.of_layers(removed), prompt=str(state.get(s.PROMPT, ""))
        )  # fmt: skip
        s.set_job(state, asked.kind, tools.submit(asked, key=shown.key))


def _text(
    tools: Service, shown: Shown, removed: tuple[int, ...], ledger: Ledger | None, step: LedgerStep, prompt: str
) -> str:
    if shown.ref is not None:
        kept = tools.continuations.get(text_key(shown.ref, step.evaluation.removed, step.methods, prompt))
        if kept is not None:
            return kept.strip()
    return step.continuation.strip() if ledger is not None and ledger.prompt == prompt else ""


def _missing(tools: Service, shown: Shown, removed: tuple[int, ...], step: LedgerStep) -> str:
    if step.treatments and treated(tools, shown.ref, removed, step) is None:
        if kept.is_kept(tools, shown.key, removed, step.methods):
            return "Not in memory: bring it back, below the ledger."
        return f"Not in memory any more: {'heal' if step.name == 'healed' else 'repair'} again."
    return "–"


TICK_SECONDS = 1.0
_METHODS_SAID: Mapping[str, str] = {
    "seam_refit": "The layer before the cut is solved anew, and may take over removed neurons.",
    "seam_trained": "The same, then that layer is trained by the loss at the end: it leans more on the text.",
    "linear_fold": "A linear map is folded into the layer before the cut.",
    "scale": "One number for the layers after it.",
}


def draw() -> None:
    """Draw the page."""
    tools, state = bench(), s.session()
    shown = look(tools, state)
    if shown.error:
        notes.problem(shown.error)
    if shown.model is None:
        st.caption("Choose a model first, on the Model page; then a block, on the Map page.")
        return
    settle_block(state, shown.run, shown.model)
    inspector.block_inputs(shown.model.num_layers)
    removed = _cut(shown)
    problem = _problem(shown.model, removed)
    if problem:
        notes.problem(problem)
        return
    job = newest(tools, shown, removed)
    _actions(tools, shown, shown.model, removed, job)
    follow(tools, job, draw_job, seconds=TICK_SECONDS)
    _ledger(tools, shown, removed, job)
    _below(tools, shown, removed, live=job is not None and job.live)
    found = _known(tools, shown, removed)
    ledger_view.evidence(tools, shown, removed, found, live=job is not None and job.live)
    continuations(tools, shown, removed, found)


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
        format_func=lambda cut: f"{counted(len(cut), 'layer')}: {layers_text(cut)}{' · chosen block' * (cut == own)}",
        key=f"heal_cut_{layers_text(s.cut(state))}",  # made anew where the cut was chosen elsewhere
        label_visibility="collapsed",
        width=420,
    )
    if picked != s.cut(state):
        s.set_cut(state, picked)
        st.rerun()
    return picked


def _ledger(tools: Service, shown: Shown, removed: tuple[int, ...], job: JobState | None) -> None:
    """Draw the newest ledger: that of a job that has ended or is at work, or that of the run."""
    live = job is not None and job.live

    @st.fragment(run_every=TICK_SECONDS if live else None)
    def ledger() -> None:
        now = tools.state(job.id) if job is not None else None
        found: Ledger | None = None
        if now is not None and isinstance(now.record, Treating) and now.record.ledger is not None:
            found = now.record.ledger if now.record.ledger.removed == removed else None
        if found is None or not (now is not None and now.live):
            found = _known(tools, look(tools, s.session()), removed) or found
        if found is None:
            now_do = "Load the model first." if shown.handle is None else "Repair or train: both measure the cut first."
            st.caption(f"Uncut, cut, repaired and trained will stand here, on the same text. {now_do}")
            return
        ledger_view.draw_ledger(found, key="ledger")

    ledger()


def _known(tools: Service, shown: Shown, removed: tuple[int, ...]) -> Ledger | None:
    return known_ledger(tools, shown.ref, shown.run, removed, s.evaluation(s.session()))


def _below(tools: Service, shown: Shown, removed: tuple[int, ...], *, live: bool) -> None:
    """Draw what can be done with the models of the ledger."""
    found = _known(tools, shown, removed)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        ledger_view.gone(tools, shown, removed, found, live=live)
        ledger_view.questions(tools, shown, found, live=live)


def _actions(tools: Service, shown: Shown, model: ModelInfo, removed: tuple[int, ...], job: JobState | None) -> None:
    """Draw the three steps in order, each with its one button and what it won back, and what folds away below them."""
    state = s.session()
    live = job is not None and job.live
    why = notes.why_off(shown.handle is None, live)
    found = _known(tools, shown, removed)
    cut, repair, train = st.columns(3, gap="small", border=True)
    with cut:
        known = ledger_view.cut_price(shown, removed, found)
        _step_words("1 Cut", found, "cut", "Removes the layers; what that costs is measured first.", known)
        st.button(
            "See it on the map", icon=":material/grid_on:", key="heal_to_map", on_click=s.leave_for, args=(state, "Map")
        )
    with repair:
        _step_words("2 Repair", found, "repaired", "Changes the layer before the seam: a minute, or two or three.")
        button = st.container(horizontal=True, gap="small")
        with button.popover("Method", icon=":material/tune:"):
            method = st.radio(
                "Method",
                list(METHODS),
                format_func=lambda name: METHODS[name],
                captions=[_METHODS_SAID[name] for name in METHODS],
                key=s.METHOD,
                persist_state="session",
            )
            most, _ = policy.most_tokens(settings())
            st.number_input(
                "Tokens to fit on, at most", 1, most, value=min(FIT_TOKENS, most), step=FIT_TOKENS,
                key=s.FIT_TOKENS, persist_state="session",
                help="Of the text to fit and train on, two rows at least. Time and memory grow with them; of text of "
                "many kinds more win back more.",
            )  # fmt: skip
        method = method if method in METHODS else next(iter(METHODS))
        button.button(
            "Repair", icon=":material/build:", disabled=bool(why), help=why or None, key="repair_button",
            on_click=ledger_view.repair, args=(tools, shown, removed, method),
        )  # fmt: skip
    with train:
        _step_words("3 Train", found, "healed", "A small adapter learns from text, for minutes to hours.")
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            name = recipe_view.preset_switch()
            start = st.container(width="content")
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            first = st.checkbox(
                "Repair first", value=True, key=s.REPAIR_FIRST, persist_state="session",
                help="Begin the training from the repaired model.",
            )  # fmt: skip
            share = recipe_view.share_choice()
    changes, own = _recipe(tools, state, name, model, share)
    start.button(
        "Train", icon=":material/healing:", type=main_button(), disabled=bool(why) or changes is None,
        help=why or ("A setting of the training cannot be used, as is said below." if changes is None else None),
        key="heal_button", on_click=ledger_view.heal,
        args=(tools, shown, removed, name, changes or (), own, method if first else None),
    )  # fmt: skip
    if changes is not None:
        train.caption(plain(recipe_view.summary(preset(name, model, **dict(changes)))))
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.button(
            "Stop", icon=":material/stop:", disabled=not live, key="stop_treating",
            help="Keeps the best so far." if live else "Nothing is at work on this cut: there is nothing to stop.",
            on_click=tools.stop, args=(job.id if job is not None else "",),
        )  # fmt: skip
        _shrink(tools, shown, model, removed, why, method)


def _step_words(title: str, ledger: Ledger | None, name: str, what: str, known: str = "") -> None:
    """Say what a step is, and what it costs or won back: the best of its kind in the ledger, else what is known."""
    st.markdown(f"**{title}**  \n:small[{what}]")
    steps = [step for step in ledger.steps if step.name == name] if ledger is not None else []
    best = min(steps, key=lambda step: step.evaluation.score.nll, default=None)
    st.markdown(ledger_view.price(best) if best is not None else known or "not measured yet")


def _shrink(tools: Service, shown: Shown, model: ModelInfo, removed: tuple[int, ...], why: str, method: str) -> None:
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
            "Shrink", icon=":material/compress:", disabled=bool(why), help=why or None, key="shrink_button",
            on_click=ledger_view.shrink, args=(tools, shown, int(layers), method),
        )  # fmt: skip


def _recipe(
    tools: Service, state: s.State, name: str, model: ModelInfo, share: float | None
) -> tuple[tuple[Change, ...] | None, OwnText]:
    left, right = st.columns([1.25, 1], gap="medium")
    with left, st.expander("Settings of the training", icon=":material/tune:"):
        own = recipe_view.own_text(share)
        changes = recipe_view.changes(name, model)
    with right, st.expander("Text to fit and train on", icon=":material/article:"):
        texts.pick(tools, state, "training")
    return changes, own
