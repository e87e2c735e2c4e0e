"""The ledger of a cut on a page: table, chart, questions and evidence, and what starts a repair or a healing."""

from typing import Any

import streamlit as st

from shortviz.analysis.evidence import evidence_table, score_of
from shortviz.analysis.evidence import notes as evidence_notes
from shortviz.figures import ledger as ledger_charts
from shortviz.records.formatting import counted, duration, layers_text, percent, times, with_error
from shortviz.records.heal import OwnText
from shortviz.records.ledger import TRAINED, Ledger, LedgerStep, accuracy_change, not_better, verdicts
from shortviz.records.measured import from_map, windows_words
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
    EvidenceRequest,
    HealRequest,
    RepairRequest,
    Request,
    ShrinkRequest,
)
from shortviz.service.service import Service
from shortviz.text.tokens import FIT_TOKENS
from shortviz.ui.parts import notes
from shortviz.ui.parts import questions as task_picker
from shortviz.ui.parts.notes import dark, plain
from shortviz.ui.session import opened
from shortviz.ui.session import state as s
from shortviz.ui.session.address import go_to
from shortviz.ui.session.service import follow, start_job
from shortviz.ui.session.shown import FONT, Shown, start_of


def draw_ledger(ledger: Ledger, *, key: str) -> None:
    """Draw the ledger: what speaks against its models, then numbers on the left, the chart on the right."""
    for words in verdicts(ledger):
        st.warning(plain(words), icon=":material/warning:")
    asked = ledger.task(ledger.steps[0]) is not None
    left, right = st.columns([2.6 if asked else 2.0, 1], gap="medium")
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
                "step": st.column_config.TextColumn(width=140),
                "won back": st.column_config.TextColumn(width=96, help="Share of the lost NLL; the error is paired."),
                "perplexity over uncut": st.column_config.TextColumn(
                    width=190, help="As a factor; in brackets the NLL increase a token, with its paired error."
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
        figure = ledger_charts.recovery_figure(ledger, dark())
        figure.update_layout(font={"family": FONT})
        st.plotly_chart(figure, theme=None, key=f"{key}_chart", config={"displayModeBar": False}, alt=alt)


def behind(ledger: Ledger) -> str:
    """Return what text stands behind the numbers, and which each treated model was fitted to or trained on."""
    score = ledger.steps[0].evaluation.score
    windows = windows_words(score.windows, ledger.text)
    found = f"{counted(score.tokens, 'token')} scored of {plain(ledger.text.words)}, {windows}, the same for every step"
    told = [
        f"{plain(step.label)} was {'trained on' if step.name == 'healed' else 'fitted to'} {plain(text.source)} "
        f"({counted(text.tokens, 'token')})"
        for step in ledger.steps
        if step.treatments and (text := step.treatments[-1].text) is not None
    ]
    return "; ".join([found, *told])


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
        f"{plain(step.label[:1].upper() + step.label[1:])}: perplexity **"
        f"{_factor(step)}**, paired · {perplexity} · won back "
        f"**{won_back(step)}** · {counted(found.score.tokens, 'token')}"
    )


def steps_line(ledger: Ledger, *, most: int = 2) -> str:
    """Return the best treated steps in a line: perplexity, share won back, tokens behind; "" where none is."""
    treated = sorted((step for step in ledger.steps if step.treatments), key=lambda step: step.evaluation.score.nll)
    if not treated:
        return ""
    best = treated[:most][::-1]
    alike = len({step.name for step in best}) < len(best)
    told = [
        f"{plain(step.label if alike else step.name)} **{_factor(step)}**, won back **{won_back(step)}**"
        + (", **no better than what it began from**" if not_better(ledger, step) else "")
        for step in best
    ]
    more = f" · {len(treated) - most} more on the Heal page" if len(treated) > most else ""
    line = f"{' · '.join(told)} · {counted(treated[0].evaluation.score.tokens, 'token')}{more}"
    return line[:1].upper() + line[1:]


def _factor(step: LedgerStep) -> str:
    return times(step.evaluation.nll_increase, step.evaluation.nll_increase_stderr)


def price(step: LedgerStep) -> str:
    """Return what a step costs in a few words, and what it won back in what time where it is a treatment."""
    cost = f"perplexity {_factor(step)}"
    if not step.treatments:
        return f"**{cost}**"
    return f"**won back {won_back(step)}** in {duration(sum(t.seconds for t in step.treatments))} · {cost}"


def cut_price(shown: Shown, removed: tuple[int, ...], ledger: Ledger | None) -> str:
    """Return what a cut costs as it is, by its ledger or else by the map; "" where neither is measured."""
    cut, block = ledger.step("cut") if ledger is not None else None, Removal.of_layers(removed).block
    if cut is not None or block is None or shown.run is None or shown.model is None:
        return price(cut) if cut is not None else ""
    cell = from_map(shown.run.losses, shown.model, block)
    return f"**perplexity {times(cell.nll_increase, cell.nll_increase_stderr)}**, by the map" if cell else ""


def won_back(step: LedgerStep) -> str:
    """Return `39 ± 1 %`; a dash where there is no share."""
    return percent(step.recovered, step.recovered_stderr)


# Below a ledger: bringing back models that are not in memory any more, and the questions that every step is asked.


def gone(tools: Service, shown: Shown, removed: tuple[int, ...], ledger: Ledger | None, *, live: bool) -> None:
    """Name the treated models that are not in memory, each with the button that brings it back where it is kept."""
    steps = [step for step in ledger.steps if step.treatments] if ledger is not None else []
    away = [step for step in steps if treated(tools, shown.ref, removed, step) is None]
    here = [step for step in away if kept.is_kept(tools, shown.key, removed, step.methods)]
    why = notes.why_off(shown.ref is None, live)
    for number, step in enumerate(here):
        st.button(
            f"Bring back: {plain(step.label)}", icon=":material/restore:", key=f"bring_{layers_text(removed)}_{number}",
            disabled=bool(why), on_click=_bring_back, args=(tools, shown, removed, step),
            help=why or "Its own weights lie beside the run: it is put into memory again as it was, without training.",
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
    task_picker.questions_button(tools, key="heal")
    rows = task_picker.chosen_rows(tools)
    if rows is None:
        return
    missing = [] if ledger is None else [step for step in ledger.steps if _unasked(ledger, step, rows.fingerprint)]
    if ledger is None or not missing:
        return
    why = notes.why_off(shown.ref is None, live)
    st.button(
        f"Score {len(rows.rows)} questions", icon=":material/play_arrow:", key="ask_steps",
        disabled=bool(why), on_click=_ask, args=(tools, shown, ledger),
        help=why or "Asks the model of every step that is in memory or kept; repairing and healing ask them too.",
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
    """Start work whose results go into the opened run, or that of model and text, which begins as what is shown."""
    state = s.session()
    if shown.ref is None:
        return
    key = opened.goes_into(state, shown.ref)
    if key != s.run_key(state):
        s.leave_run(state)
    start_job(asked, key=key, start=start_of(shown))


# Repair and Heal beside the numbers of a cut: the map's inspector, and what both pages start.

TICK_SECONDS = 1.0


def _common(shown: Shown) -> dict[str, Any]:
    """Return what every treatment of the model that is shown is asked with."""
    state = s.session()
    return {
        "model": shown.ref, "text": s.training(state), "evaluation": s.evaluation(state), "windows": APP_WINDOWS,
        "task": s.task(state), "write": str(state.get(s.PROMPT, "")),
    }  # fmt: skip


def _fitted(shown: Shown) -> dict[str, Any]:
    """Return what every work with a repair is asked with; it takes two rows at least, however long those are."""
    state = s.session()
    tokens = max(int(state.get(s.FIT_TOKENS, FIT_TOKENS)), 2 * s.training(state).fit_length)
    return _common(shown) | {"fit_tokens": tokens}


def repair(tools: Service, shown: Shown, removed: tuple[int, ...], method: str) -> None:
    """Start the repair of a cut of the model that is shown."""
    _submit(tools, shown, RepairRequest(removal=Removal.of_layers(removed), method=method, **_fitted(shown)))


def heal(
    tools: Service, shown: Shown, removed: tuple[int, ...], preset: str, changes: tuple[Change, ...], own: OwnText,
    first: str | None,
) -> None:  # fmt: skip
    """Start the healing of a cut of the model that is shown, repaired `first` by a method."""
    recipe: dict[str, Any] = {"preset": preset, "changes": changes, "own": own, "repair": first}
    recipe |= _common(shown) if first is None else _fitted(shown)
    _submit(tools, shown, HealRequest(removal=Removal.of_layers(removed), **recipe))


def shrink(tools: Service, shown: Shown, to_layers: int, method: str) -> None:
    """Start cutting the model that is shown layer by layer, with a repair after each."""
    _submit(tools, shown, ShrinkRequest(to_layers=to_layers, method=method, choose_on_text=True, **_fitted(shown)))


# What the models can still do, on the Heal page.


def evidence(tools: Service, shown: Shown, removed: tuple[int, ...], ledger: Ledger | None, *, live: bool) -> None:
    """Draw what the models of a ledger can still do, and the button that measures what is missing of that."""
    found = ledger if ledger is not None and ledger.probes else None
    with st.expander("What the models can still do", icon=":material/fact_check:", expanded=found is not None):
        why = notes.why_off(shown.handle is None, live)
        st.button(
            "Measure" if found is None else "Measure what is missing", icon=":material/fact_check:",
            key="evidence_button", disabled=bool(why), on_click=_ask_evidence, args=(tools, shown, removed),
            help=why or
            "Other kinds of text, five probes of 100 items, speed and size, of every model that is here: minutes.",
        )  # fmt: skip
        if found is None or shown.model is None:
            st.caption(
                "Not measured yet: kinds of text, copying, sums, brackets, facts, and the speed of uncut and cut."
            )
            return
        table = evidence_table(found, shown.model)
        rows = [dict(zip(["measured", *table.headings[1:]], row, strict=True)) for row in table.rows]
        st.dataframe(
            rows, hide_index=True, height="content", width="stretch", key="evidence_table",
            alt="What each model can still do; the uncut one is the ceiling.",
        )  # fmt: skip
        st.caption(plain(" ".join(evidence_notes(found))))
        _written(found)


def _ask_evidence(tools: Service, shown: Shown, removed: tuple[int, ...]) -> None:
    _submit(tools, shown, EvidenceRequest(removal=Removal.of_layers(removed), **_common(shown)))


def _written(ledger: Ledger) -> None:
    """Draw what every model wrote in one probe, item by item."""
    probes = {probe.name: probe for probe in ledger.probes if not probe.refused}
    name = st.selectbox("Items, answers and marks of the probe", list(probes), key="evidence_probe", width=320)
    if name not in probes:
        return
    scores = [(step.label, score_of(step, probes[name])) for step in ledger.steps]
    rows = [
        {"question": item.question, "answer": item.answer}
        | {
            label: f"{'✓' if score.right[at] == '1' else '✗'} {score.written[at]}"
            for label, score in scores
            if score is not None
        }
        for at, item in enumerate(probes[name].items)
    ]
    st.dataframe(rows, hide_index=True, height=240, width="stretch", key="evidence_items", alt=f"The probe {name}.")


def buttons(tools: Service, shown: Shown, block: Block) -> None:
    """Draw the buttons that repair the chosen block, or take it to the Heal page."""
    job = tools.treating((RepairRequest.kind,), shown.ref, block.layers)
    live = job is not None and job.live
    why = notes.why_off(shown.handle is None, live)
    found = s.session().get(s.METHOD)
    method = found if found in METHODS else next(iter(METHODS))
    how = "and a short training: two or three minutes" if method == TRAINED else "without training: seconds to a minute"
    st.button(
        "Repair", icon=":material/build:", disabled=bool(why), key="repair_cell",
        help=f"{why} Repair computes new weights beside the cut, {how}; more with more tokens.".strip(),
        on_click=repair, args=(tools, shown, block.layers, method),
    )  # fmt: skip
    what = "Heal trains a small adapter on text, which takes minutes; opens its page."
    if st.button("Heal", icon=":material/healing:", key="to_heal", help=what):
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
