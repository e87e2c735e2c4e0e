"""What moves on the Heal page: the job at work with its loss curve, and the continuations as they are written."""

import streamlit as st

from shortviz import ledger_charts
from shortviz.heal_settings import HealHistory
from shortviz.job_state import JobState
from shortviz.ledger import Ledger, LedgerStep
from shortviz.ui import kept_models, notes, treat_actions
from shortviz.ui import state as s
from shortviz.ui.following import follow
from shortviz.ui.map_view import FONT
from shortviz.ui.resources import Bench
from shortviz.ui.shown import Shown
from shortviz.ui.treating import LOOKING, TREATING, Treating, text_key, treated
from shortviz.ui.words import plain
from shortviz.words import layers_text

TICK_SECONDS = 1.0


def newest(tools: Bench, shown: Shown, removed: tuple[int, ...]) -> JobState | None:
    """Return the job that the page follows: a live one on this cut, a live shrinking, or the last that has ended."""
    found = [tools.treating(TREATING, shown.ref, removed), tools.treating(("shrink",), shown.ref, ())]
    jobs = [job for job in found if job is not None]
    looking = tools.treating(LOOKING, shown.ref, removed)
    if looking is not None and (looking.live or looking.state == "failed"):  # its end hides no training's curve
        jobs.append(looking)
    return max(jobs, key=lambda job: (job.live, job.created), default=None)


def job(now: JobState | None) -> None:
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
    if now.kind == "shrink":
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
    st.plotly_chart(
        figure,
        theme=None,
        key="healing_chart",
        config={"displayModeBar": False},
        alt=alt,
    )
    last = history.points[-1]
    speed = f" {last.tokens_per_second:,.0f} tokens/s." if last.tokens_per_second else ""
    st.caption(f"{plain(alt)}{speed}")


def continuations(tools: Bench, shown: Shown, removed: tuple[int, ...], ledger: Ledger | None) -> None:
    """Draw the prompt and what the model of every step makes of it, side by side."""
    state = s.session()
    off = shown.handle is None
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.text_input(
            "Prompt, continued by every model", key=s.PROMPT, max_chars=2000, persist_state="session", disabled=off
        )
        st.button(
            "Run", icon=":material/play_arrow:", disabled=off, key="run_continuations",
            help="Load a model first." if off else "Let every model that is in memory continue the prompt.",
            on_click=_write, args=(tools, shown, removed, ledger),
        )  # fmt: skip
    prompt = str(state.get(s.PROMPT, ""))

    def written(now: JobState | None) -> None:
        notes.job_error(now)
        if now is not None and now.live:
            st.button(
                "Stop", icon=":material/stop:", on_click=notes.cancel, args=(tools, now.id), key="stop_continuations"
            )
        steps = ledger.steps if ledger is not None else ()
        for column, step in zip(st.columns(max(len(steps), 1), gap="small"), steps, strict=False):
            with column, st.container(height=132, border=True, gap=None):
                st.caption(plain(step.label[:1].upper() + step.label[1:]))
                st.text(
                    _text(tools, shown, removed, ledger, step, prompt)
                    or ("…" if now is not None and now.live else _missing(tools, shown, removed, step))
                )

    follow(tools, tools.state(s.job(state, "continuations")), written, seconds=TICK_SECONDS)


def _write(tools: Bench, shown: Shown, removed: tuple[int, ...], ledger: Ledger | None) -> None:
    state = s.session()
    if shown.ref is not None:
        prompt = str(state.get(s.PROMPT, ""))
        job_id = treat_actions.start_continuations(tools, shown.ref, removed, ledger, prompt)
        s.set_job(state, "continuations", job_id)


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
        if kept_models.is_kept(tools, shown.key, removed, step.methods):
            return "Not in memory: bring it back, below the ledger."
        return f"Not in memory any more: {'heal' if step.name == 'healed' else 'repair'} again."
    return "–"
