"""The right side of the Map page: what removing the chosen block means, predicted and measured."""

import math
from dataclasses import replace

import streamlit as st

from shortviz import criteria
from shortviz.records.formatting import count, counted, factor, layers_text, percent, size, with_error
from shortviz.records.measured import BlockDistances, Evaluation, from_map, windows_words
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block, Removal
from shortviz.service import measure
from shortviz.service.inspect import Inspection
from shortviz.service.ledger import ledger_of
from shortviz.service.queue import JobState
from shortviz.service.requests import EvaluateRequest
from shortviz.service.service import Service
from shortviz.ui.parts import questions
from shortviz.ui.parts.map import is_from_map
from shortviz.ui.parts.notes import job_error, main_button, plain, why_off
from shortviz.ui.parts.stack import differences
from shortviz.ui.session import state as s
from shortviz.ui.session.service import start_job
from shortviz.ui.session.shown import Shown, criterion_of, measure_job

_INPUT_WIDTH = 113
_TEXT, _LOW_TEXT = 112, 92
"""Height of what both models write: the buttons below it stay on a screen of 720."""


def block_inputs(num_layers: int) -> None:
    """Say which block is chosen, beside two numbers that choose it: the keyboard's way to what a click does."""
    state = s.session()
    block = s.block(state) or Block(start=0, n=1)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.markdown(f"#### Removes {block}")
        for name, low, high, value in (("start", 0, num_layers - 1, block.start), ("n", 1, num_layers, block.n)):
            key = s.input_key(state, name)
            st.number_input(name, low, high, value=value, key=key, on_change=_typed, width=_INPUT_WIDTH)


def _typed() -> None:
    s.type_block(s.session())
    measure_wanted()


def measure_wanted() -> None:
    """Ask for the chosen block to be measured."""
    s.want(s.session(), "numbers")
    st.rerun()  # the whole page, not only the fragment that the widget is in


def draw(bench: Service, shown: Shown, model: ModelInfo, block: Block, job: JobState | None) -> None:
    """Draw everything that is known about the block: what it costs, what both models write, what it saves.

    `shown` is as `living` has it, so that nothing here is of another measurement than the map beside it.
    """
    state = s.session()
    distances = shown.distances
    found = inspection(bench, state, shown, block, job)
    ours = _asked_block(bench, job) == block
    running = job is not None and job.live and ours
    warnings(distances, model, block)
    if found.evaluation is not None:
        newest = job.record if running and job is not None and isinstance(job.record, Inspection) else Inspection()
        done = newest.evaluation is not None and newest.evaluation.complete
        measured(found.evaluation, refining=running and not done)
    elif running:
        _measuring()
    elif block.n < model.num_layers:
        _not_measured(shown)
    if ours:
        job_error(job)
    continuations(bench, shown, found, running=running)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        saves(model, block)
        predicted(distances, block, criterion_of(state, distances) if distances is not None else "")
    if block.n < model.num_layers:
        questions.block_score(bench, shown, block, measure_job(bench, state, shown, "tasks"))


_METRICS = ("Perplexity", "Loss, nats per token", "KL, nats", "Same next token")


def _measuring() -> None:
    """Keep the place of the numbers that are on their way, so that nothing below jumps when they come."""
    with st.container(horizontal=True, gap="small"):
        for label in _METRICS:
            st.metric(label, "…", width="content")
    st.caption(":material/autorenew: Measuring …")


def _not_measured(shown: Shown) -> None:
    if shown.handle is None:
        st.caption("Not measured yet. Load the model to see what removing this block really does.")
    else:
        st.button(
            "Measure this block", icon=":material/play_arrow:", on_click=measure_wanted, key="measure_block",
            type=main_button(),
        )  # fmt: skip


def predicted(distances: BlockDistances | None, block: Block, criterion: str) -> None:
    """Show what every criterion says about the block, the chosen criterion first, folded away."""
    lines = []
    if distances is not None:
        names = [criterion, *(name for name in distances.criteria if name != criterion)]
        lines = [_predicted_line(distances, block, name) for name in names]
    with st.popover(
        "Predicted", icon=":material/insights:", disabled=not lines,
        help="What each criterion says of this block." if lines else "Measure distances on the map first.",
    ):  # fmt: skip
        st.markdown("  \n".join(lines))


def _predicted_line(distances: BlockDistances, block: Block, name: str) -> str:
    grid = distances.criteria[name]
    if math.isnan(grid.at(block)[0]):
        return f"{plain(criteria.label(name))} not measured yet"
    blocks = grid.num_layers - block.n + 1
    number = with_error(*grid.at(block))
    return f"{plain(criteria.label(name))} **{number}** · rank {grid.rank(block)} of {blocks} with n {block.n}"


def measured(evaluation: Evaluation, *, refining: bool) -> None:
    """Show what the cut costs, paired and first, then how far predictions moved, then what stands behind it."""
    score, base = evaluation.score, evaluation.base
    increase = evaluation.nll_increase
    with st.container(horizontal=True, gap="small"):
        st.metric(
            _METRICS[0], factor(increase, evaluation.nll_increase_stderr), width="content",
            help="Of the cut model over that of the uncut one.",
        )  # fmt: skip
        st.metric(
            _METRICS[1], with_error(increase, evaluation.nll_increase_stderr, sign=True), width="content",
            help="On the same windows as the uncut model; the error is paired.",
        )  # fmt: skip
        if evaluation.kl is not None:
            st.metric(_METRICS[2], with_error(evaluation.kl, evaluation.kl_stderr), width="content", help=_KL_HELP)
        if evaluation.same_top1 is not None:
            same = percent(evaluation.same_top1, evaluation.same_top1_stderr)
            st.metric(_METRICS[3], same, width="content", help=_TOP1_HELP)
    before = f"{with_error(base.perplexity)} → " if base is not None else ""
    words = [
        f"perplexity {before}{with_error(score.perplexity)}",
        f"{counted(score.tokens, 'token')} scored of {plain(evaluation.text.words)}, "
        f"{windows_words(score.windows, evaluation.text)}",
    ]
    if is_from_map(evaluation):
        words.append("from the measured map")
    if refining:
        words.append(":material/autorenew: still refining")
    elif not is_from_map(evaluation):
        words.append("steady" if evaluation.complete else "stopped early")
    differ = with_error(score.perplexity_stderr)
    st.caption(" · ".join(words), help=f"{_DIFFER_HELP} ± {differ}" if score.windows > 1 else None)


_DIFFER_HELP = (
    "Perplexities differ from text to text, what the cut does to them less: the factor and the increase above are "
    "paired, window by window. Over these windows the perplexity of the cut model has an error of"
)
_KL_HELP = "KL(uncut ‖ cut) per token: how far the cut model's predictions have moved from the uncut model's."
_TOP1_HELP = "Share of tokens where both models think the same next token most likely."


def saves(model: ModelInfo, block: Block) -> None:
    """Show what the cut saves: parameters, bytes, cache, and its share of the weights; nothing is timed."""
    parameters = sum(model.layer_parameters[i] for i in block.layers)
    words = [
        f"Saves {count(parameters)} parameters ({percent(parameters / model.parameters)})",
        size(sum(model.layer_bytes[i] for i in block.layers)),
        f"{size(sum(model.layer_cache_bytes[i] for i in block.layers))} of cache per token",
    ]
    words.append(f"{percent(model.weights_share(block.layers))} of the weights in layers and head, computed")
    st.caption(" · ".join(words), width=380)  # the button beside it keeps its line


def warnings(distances: BlockDistances | None, model: ModelInfo, block: Block) -> None:
    """Say what speaks against the block: it cannot be exported, or it takes the attention sink away."""
    if block.n >= model.num_layers:
        st.warning("This removes every layer; nothing would be left to run.", icon=":material/block:")
        return
    reason = model.illegal_reason(block)
    if reason is not None:
        st.warning(f"Cannot be exported: {plain(reason)}", icon=":material/block:")
    sinks = distances.norms.sink_layers if distances is not None else ()
    gone = [i for i in sinks if i in block.layers]
    if gone:
        st.markdown(
            f":orange[:material/warning: Removes layer {layers_text(gone)}, which writes the attention sink: "
            "expect a higher loss than the distance says.]"
        )


def continuations(bench: Service, shown: Shown, found: Inspection | None, *, running: bool) -> None:
    """Draw the prompt and what both models make of it."""
    state = s.session()
    block = s.block(state)
    ledger = ledger_of(shown.run, block.layers) if block is not None else None
    treated = ledger is not None and ledger.best is not None  # has a line of its own below
    why = why_off(shown.handle is None, False)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.text_input(
            "Prompt, continued by both models", key=s.PROMPT, max_chars=2000, persist_state="session",
            on_change=_prompted, disabled=bool(why), help=why or None,
        )  # fmt: skip
        st.button(
            "Run", icon=":material/play_arrow:", disabled=bool(why), on_click=_prompted, key="run_prompt",
            help=why or "Let both models continue the prompt.",
        )  # fmt: skip
        questions.questions_button(bench)
    if shown.handle is None:
        return
    prompt = str(state.get(s.PROMPT, ""))
    same = found is not None and found.prompt == prompt
    texts = (found.uncut.strip(), found.cut.strip()) if found is not None and same else ("", "")
    waiting = "…" if running else "–"
    with st.container(height=_LOW_TEXT if treated else _TEXT, border=True, gap=None):
        for name, words in zip(("uncut", "cut"), marked(*texts), strict=True):
            st.markdown(f":gray[{name}]  {words or waiting}")


def marked(uncut: str, cut: str) -> tuple[str, str]:
    """Return both texts as Markdown that shows them exactly, the words in which they differ marked in the cut one's."""
    if not uncut.strip() or not cut.strip():
        return plain(uncut), plain(cut)
    parts = ((plain(words), differs) for words, differs in differences(uncut, cut))
    return plain(uncut), " ".join(f":orange-background[{words}]" if differs else words for words, differs in parts)


def _prompted() -> None:
    s.want(s.session(), "text")
    st.rerun()


def start_wanted(bench: Service, shown: Shown, block: Block | None, job: JobState | None) -> None:
    """Start the measurement that the person's choice asked for; one that was begun for another block is cancelled."""
    state = s.session()
    wanted = s.wanted(state)
    if not wanted or shown.handle is None or shown.ref is None or block is None:
        return
    s.want(state, "")
    if job is not None and job.live:
        bench.stop(job.id)
    if shown.model is None or block.n >= shown.model.num_layers or shown.model.illegal_reason(block):
        return
    start_job(
        EvaluateRequest(
            model=shown.ref,
            removal=Removal(block=block),
            text=s.evaluation(state),
            windows=measure.APP_WINDOWS,
            write=str(state.get(s.PROMPT, "")),
        ),
        key=shown.key,
    )


def _asked(bench: Service, job: JobState | None) -> EvaluateRequest | None:
    """Return what a job measures; None where it measures no block, or is not for this session's eyes."""
    about = bench.context(job.id) if job is not None else None
    return about.request if about is not None and isinstance(about.request, EvaluateRequest) else None


def _asked_block(bench: Service, job: JobState | None) -> Block | None:
    asked = _asked(bench, job)
    return asked.removal.block if asked is not None and asked.removal is not None else None


def inspection(bench: Service, state: s.State, shown: Shown, block: Block, job: JobState | None) -> Inspection:
    """Return what is known about the block: from the running job, from this process, or from the run."""
    spec = s.evaluation(state)
    prompt = str(state.get(s.PROMPT, ""))
    found = Inspection(prompt=prompt)
    asked = _asked(bench, job)
    about = (asked.removal, asked.model, asked.text) if asked is not None else None
    if job is not None and isinstance(job.record, Inspection) and about == (Removal(block=block), shown.ref, spec):
        found = job.record
    evaluation = found.evaluation
    if evaluation is None and shown.ref is not None:
        evaluation = bench.measured.get(measure.measured_key(shown.ref, spec, block.layers))
    if (evaluation is None or not evaluation.complete) and shown.run is not None:
        kept = shown.run.evaluation_of(block.layers) or from_map(shown.run.losses, shown.run.model, block)
        evaluation = _more_text(evaluation, kept)
    return replace(found, evaluation=evaluation)


def _more_text(new: Evaluation | None, kept: Evaluation | None) -> Evaluation | None:
    """Return the evaluation with more of the text behind it: a first look does not push out what was measured on more.

    One of another text does not come before one of the session's.
    """
    if new is None or kept is None or new.text.source != kept.text.source:
        return new or kept
    return new if new.score.tokens >= kept.score.tokens else kept
