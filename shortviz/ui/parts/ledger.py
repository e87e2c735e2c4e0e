"""The ledger of a cut on a page: a table, the chart of what was won back, and what was said of each treatment."""

from typing import Any

import streamlit as st

from shortviz.figures import ledger as ledger_charts
from shortviz.records.formatting import counted, layers_text, percent, with_error
from shortviz.records.ledger import Ledger, LedgerStep, accuracy_change
from shortviz.records.plan import Block, Removal
from shortviz.runs.report import ledger_table
from shortviz.service import kept
from shortviz.service.ledger import METHODS, Treating, ledger_of, treated
from shortviz.service.measure import APP_WINDOWS
from shortviz.service.queue import JobState
from shortviz.service.requests import (
    AskRequest,
    BringBackRequest,
    Change,
    HealRequest,
    RepairRequest,
    Request,
    ShrinkRequest,
)
from shortviz.service.service import Service, run_key
from shortviz.ui.parts import notes
from shortviz.ui.parts import questions as task_picker
from shortviz.ui.parts import questions as task_view
from shortviz.ui.parts.notes import plain
from shortviz.ui.session import state as s
from shortviz.ui.session.address import go_to
from shortviz.ui.session.polling import follow
from shortviz.ui.session.shown import FONT, Shown


def draw_ledger(ledger: Ledger, *, key: str) -> None:
    """Draw the ledger: numbers on the left, the chart on the right."""
    asked = ledger.task(ledger.steps[0]) is not None
    left, right = st.columns([2.0 if asked else 1.45, 1], gap="medium")
    alt, table = ledger_charts.recovery_alt(ledger), ledger_table(ledger)
    with left:
        st.dataframe(
            [dict(zip(table.headings, row, strict=True)) for row in table.rows],
            hide_index=True,
            height="content",
            width="stretch",
            key=f"{key}_table",
            alt=alt,
            # Widths for the longest entry: columns that fit themselves to the first rows clip what comes later.
            column_config={
                # What matters first, and narrow: a phone shows three columns.
                "step": st.column_config.TextColumn(width=160),
                "won back": st.column_config.TextColumn(width=96, help="Share of the lost NLL; the error is paired."),
                "over uncut": st.column_config.TextColumn(
                    width=110, help="NLL increase in nats a token, with its paired error."
                ),
                "NLL, nats": st.column_config.TextColumn(width=104, help="Per token; the error is over windows."),
                "perplexity": st.column_config.TextColumn(width=88),
                "KL, nats": st.column_config.TextColumn(width=104, help="KL(uncut ‖ this model) per token."),
                "accuracy": st.column_config.TextColumn(
                    width=96, help="Of the questions named below; the error is binomial."
                ),
                "time": st.column_config.TextColumn(width=84, help="All treatments up to this step."),
            },
        )
        st.caption(behind(ledger))
        if asked:
            st.caption(accuracies(ledger))
    with right:
        figure = ledger_charts.recovery_figure(ledger, st.context.theme.type == "dark")
        figure.update_layout(font={"family": FONT})
        st.plotly_chart(figure, theme=None, key=f"{key}_chart", config={"displayModeBar": False}, alt=alt)


def behind(ledger: Ledger) -> str:
    """Return what text stands behind the numbers."""
    score = ledger.steps[0].evaluation.score
    windows = f"{counted(score.windows, 'window')} of {ledger.text.max_length}"
    return f"{counted(score.tokens, 'token')} scored of {plain(ledger.text.source)}, {windows}, the same for every step"


def accuracies(ledger: Ledger) -> str:
    """Return how the accuracy of each step differs from the uncut model's, paired, and what stands behind it."""
    asked = ledger.task(ledger.steps[0])
    if asked is None:
        return ""
    changes = [(step, accuracy_change(ledger, step)) for step in ledger.steps[1:]]
    told = [f"{plain(step.label)} {percent(*change, sign=True)}" for step, change in changes if change is not None]
    left = [plain(step.label) for step, change in changes if change is None]
    unasked = f" Not asked: {', '.join(left)}." if left else ""
    found = "; ".join(told) or "no other step was asked"
    return f"Accuracy against uncut, paired, in percentage points: {found}. {plain(asked.behind)}.{unasked}"


def step_words(step: LedgerStep) -> str:
    """Return a treated step in a line: perplexity, increase with its paired error, share won back, over how much."""
    found = step.evaluation
    perplexity = with_error(found.score.perplexity, found.score.perplexity_stderr)
    return (
        f"{plain(step.label[:1].upper() + step.label[1:])}: perplexity **{perplexity}** · NLL "
        f"{with_error(found.nll_increase, found.nll_increase_stderr, sign=True)} (paired) · won back "
        f"**{won_back(step)}** · {counted(found.score.tokens, 'token')}"
    )


def steps_line(ledger: Ledger, *, most: int = 2) -> str:
    """Return the best treated steps in a line: perplexity, share won back, over how many tokens; "" where none is."""
    treated = sorted((step for step in ledger.steps if step.treatments), key=lambda step: step.evaluation.score.nll)
    if not treated:
        return ""
    best = treated[:most][::-1]
    alike = len({step.name for step in best}) < len(best)
    told = [
        f"{plain(step.label if alike else step.name)} **{_perplexity(step)}**, won back **{won_back(step)}**"
        for step in best
    ]
    more = f" · {len(treated) - most} more on the Heal page" if len(treated) > most else ""
    line = f"{' · '.join(told)} · {counted(treated[0].evaluation.score.tokens, 'token')}{more}"
    return line[:1].upper() + line[1:]


def _perplexity(step: LedgerStep) -> str:
    return with_error(step.evaluation.score.perplexity, step.evaluation.score.perplexity_stderr)


def won_back(step: LedgerStep) -> str:
    """Return `39 ± 1 %`; a dash where there is no share."""
    return percent(step.recovered, step.recovered_stderr)


# Below a ledger: bringing back models that are not in memory any more, and the questions that every step is asked.


def gone(tools: Service, shown: Shown, removed: tuple[int, ...], ledger: Ledger | None, *, live: bool) -> None:
    """Name the treated models that are not in memory, each with the button that brings it back where it is kept."""
    steps = [step for step in ledger.steps if step.treatments] if ledger is not None else []
    away = [step for step in steps if treated(tools, shown.ref, removed, step) is None]
    here = [step for step in away if kept.is_kept(tools, shown.key, removed, step.methods)]
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


def _bring_back(tools: Service, shown: Shown, removed: tuple[int, ...], step: LedgerStep) -> None:
    if shown.ref is not None and shown.key is not None:
        asked = BringBackRequest(model=shown.ref, removal=Removal.of_layers(removed), methods=step.methods)
        s.set_job(s.session(), asked.kind, tools.submit(asked, key=shown.key))


def questions(tools: Service, shown: Shown, ledger: Ledger | None, *, live: bool) -> None:
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


def _ask(tools: Service, shown: Shown, ledger: Ledger) -> None:
    state = s.session()
    spec = s.task(state)
    if shown.ref is None or spec is None:
        return
    cut = Removal.of_layers(ledger.removed)
    _submit(tools, shown, AskRequest(model=shown.ref, removal=cut, task=spec, text=s.evaluation(state)))


def _submit(tools: Service, shown: Shown, asked: Request | AskRequest) -> None:
    """Start work whose results go into the run of the model and the text, which begins as the one that is shown."""
    state = s.session()
    assert shown.ref is not None, "it is asked of"
    job_id = tools.submit(asked, key=run_key(shown.ref, s.calibration(state)), start=shown.key)
    s.leave_run(state)
    s.set_job(state, asked.kind, job_id)


# Repair and Heal beside the numbers of a cut: the map's inspector, and what both pages start.

TICK_SECONDS = 1.0


def _common(shown: Shown) -> dict[str, Any]:
    """Return what every treatment of the model that is shown is asked with."""
    state = s.session()
    return {
        "model": shown.ref, "text": s.training(state), "evaluation": s.evaluation(state), "windows": APP_WINDOWS,
        "task": s.task(state), "write": str(state.get(s.PROMPT, "")),
    }  # fmt: skip


def repair(tools: Service, shown: Shown, removed: tuple[int, ...], method: str) -> None:
    """Start the repair of a cut of the model that is shown."""
    if shown.ref is not None:
        _submit(tools, shown, RepairRequest(removal=Removal.of_layers(removed), method=method, **_common(shown)))


def heal(
    tools: Service, shown: Shown, removed: tuple[int, ...], preset: str, changes: tuple[Change, ...], first: str | None
) -> None:
    """Start the healing of a cut of the model that is shown, repaired `first` by a method."""
    if shown.ref is not None:
        cut = Removal.of_layers(removed)
        _submit(
            tools, shown, HealRequest(removal=cut, preset=preset, changes=changes, repair=first, **_common(shown))
        )  # fmt: skip


def shrink(tools: Service, shown: Shown, to_layers: int, method: str) -> None:
    """Start cutting the model that is shown layer by layer, with a repair after each."""
    if shown.ref is not None:
        _submit(
            tools, shown, ShrinkRequest(to_layers=to_layers, method=method, choose_on_text=True, **_common(shown))
        )  # fmt: skip


def buttons(tools: Service, shown: Shown, block: Block) -> None:
    """Draw the buttons that repair the chosen block, or take it to the Heal page."""
    job = tools.treating((RepairRequest.kind,), shown.ref, block.layers)
    live = job is not None and job.live
    why = "Load the model first." if shown.handle is None else "Solves the layer before the cut anew, without training."
    found = s.session().get(s.METHOD)
    method = found if found in METHODS else next(iter(METHODS))
    st.button(
        "Repair", icon=":material/build:", disabled=shown.handle is None or live, help=why, key="repair_cell",
        on_click=repair, args=(tools, shown, block.layers, method),
    )  # fmt: skip
    if st.button("Heal", icon=":material/healing:", key="to_heal"):
        go_to(tools, s.session(), "Heal")


def cell(tools: Service, shown: Shown, block: Block) -> None:
    """Draw what repairs and healings made of the chosen block, on the same windows, and a repair that is at work."""

    def treated(now: JobState | None) -> None:
        if now is not None:
            notes.job_error(now)
            if now.live:
                notes.job_progress(now)
            elif isinstance(now.record, Treating) and now.record.note:
                st.caption(f":material/info: {plain(now.record.note)}")
        ledger = ledger_of(shown.run, block.layers)
        line = steps_line(ledger) if ledger is not None else ""
        if ledger is not None and line:
            every = [step_words(step) for step in ledger.steps if step.treatments]
            st.markdown(f":small[:material/build: {line}]", help="  \n".join(every))

    follow(tools, tools.treating((RepairRequest.kind,), shown.ref, block.layers), treated, seconds=TICK_SECONDS)
