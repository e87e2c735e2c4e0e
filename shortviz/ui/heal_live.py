"""What moves on the Heal page: the job at work with its loss curve, and the continuations as they are written."""

import streamlit as st

from shortviz import ledger_charts
from shortviz.heal_settings import HealHistory
from shortviz.job_state import JobState
from shortviz.ledger import Ledger, LedgerStep
from shortviz.ui import notes, treat_actions
from shortviz.ui import state as s
from shortviz.ui.resources import Bench
from shortviz.ui.shown import Shown
from shortviz.ui.treating import TREATING, Treating, text_key, treated
from shortviz.ui.words import plain

TICK_SECONDS = 1.0


def follow(tools: Bench, shown: Shown, removed: tuple[int, ...]) -> None:
    """Draw the newest job on this cut while it runs, and how it ended."""
    first = tools.treating(TREATING, shown.ref, removed)
    if first is None:
        return
    live = first.live

    @st.fragment(run_every=TICK_SECONDS if live else None)
    def job() -> None:
        now = tools.state(first.id)
        if live and (now is None or not now.live):
            st.rerun()
        if now is None:
            return
        notes.job_error(now)
        if now.live:
            notes.job_progress(now)
        found = now.record if isinstance(now.record, Treating) else None
        if found is not None:
            _ended(now, found)
            if found.history is not None and found.history.points:
                _curve(found.history)

    job()


def _ended(job: JobState, found: Treating) -> None:
    if job.live or not found.note:
        return
    st.info(plain(found.note), icon=":material/info:")


def _curve(history: HealHistory) -> None:
    alt = ledger_charts.healing_alt(history)
    st.plotly_chart(
        ledger_charts.healing_figure(history, st.context.theme.type == "dark"),
        theme=None,
        key="healing_chart",
        config={"displayModeBar": False},
        alt=alt,
    )
    last = history.points[-1]
    speed = f" {last.tokens_per_second:,.0f} tokens/s." if last.tokens_per_second else ""
    st.caption(f"{plain(alt)}{speed}")


def texts(tools: Bench, shown: Shown, removed: tuple[int, ...], ledger: Ledger | None) -> None:
    """Draw the prompt and what the model of every step makes of it, side by side."""
    state = s.session()
    off = shown.handle is None
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.text_input(
            "Prompt, continued by every model", key=s.PROMPT, max_chars=2000, persist_state="session", disabled=off
        )
        st.button(
            "Run", icon=":material/play_arrow:", disabled=off, key="run_texts",
            help="Load a model first." if off else "Let every model that is in memory continue the prompt.",
            on_click=_write, args=(tools, shown, removed, ledger),
        )  # fmt: skip
    prompt = str(state.get(s.PROMPT, ""))
    job_id = s.job(state, "texts")
    first = tools.state(job_id)
    live = first is not None and first.live

    @st.fragment(run_every=TICK_SECONDS if live else None)
    def written() -> None:
        now = tools.state(job_id)
        if live and (now is None or not now.live):
            st.rerun()
        notes.job_error(now)
        steps = ledger.steps if ledger is not None else ()
        for column, step in zip(st.columns(max(len(steps), 1), gap="small"), steps, strict=False):
            with column, st.container(height=132, border=True, gap=None):
                st.caption(plain(step.label[:1].upper() + step.label[1:]))
                st.text(
                    _text(tools, shown, removed, ledger, step, prompt)
                    or ("…" if live else _missing(tools, shown, removed, step))
                )

    written()


def _write(tools: Bench, shown: Shown, removed: tuple[int, ...], ledger: Ledger | None) -> None:
    state = s.session()
    if shown.ref is not None:
        prompt = str(state.get(s.PROMPT, ""))
        s.set_job(state, "texts", treat_actions.start_texts(tools, shown.ref, removed, ledger, prompt))


def _text(
    tools: Bench, shown: Shown, removed: tuple[int, ...], ledger: Ledger | None, step: LedgerStep, prompt: str
) -> str:
    if shown.ref is not None:
        kept = tools.continuations.get(text_key(shown.ref, step.evaluation.removed, step.methods, prompt))
        if kept is not None:
            return kept.strip()
    return step.continuation.strip() if ledger is not None and ledger.prompt == prompt else ""


def _missing(tools: Bench, shown: Shown, removed: tuple[int, ...], step: LedgerStep) -> str:
    if step.treatments and treated(tools, shown.ref, removed, step) is None:
        return f"Not in memory any more: {'heal' if step.name == 'healed' else 'repair'} again."
    return "–"
