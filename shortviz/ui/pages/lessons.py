"""The controls and figures that the lessons' Markdown names: each control gives the text its values."""

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from shortviz import criteria
from shortviz.analysis.curve import curve_from_map
from shortviz.analysis.planning import best_start
from shortviz.figures import losses as loss_charts
from shortviz.figures import map as charts
from shortviz.figures.cells import map_alt
from shortviz.figures.theme import PAGE_FONT
from shortviz.lessons import figures
from shortviz.lessons.data import KINDS, PositionAngles, lesson_data
from shortviz.lessons.facts import recovery
from shortviz.lessons.quiz import CRITERION, MapQuestion, angle_lines, map_questions, verdict
from shortviz.records.formatting import counted, layer_words, layers_text, with_error
from shortviz.records.measured import Grid
from shortviz.records.plan import Block
from shortviz.records.table import Table, right
from shortviz.ui.parts.lesson import block_inputs, bundled, bundled_distances, bundled_losses, for_real
from shortviz.ui.parts.notes import chart, dark
from shortviz.ui.session import state as s
from shortviz.ui.session.shown import checked_block, first_chosen, parse_selection

Values = Mapping[str, Any]
"""What a lesson's text may name, and what its figure is drawn from."""

FIRST_BLOCK = Block(start=12, n=4)


# Stream: what a layer adds.

ALL_FIRST, ALL_REST = "64 rows of text, position 0", "64 rows of text, all other positions"


def token(_: Values) -> Values:
    """Choose whose state is drawn."""
    sentence = lesson_data().sentence
    tokens = [f"“{token.strip()}”, token {i} of “{sentence.text}”" for i, token in enumerate(sentence.tokens)]
    names = [ALL_FIRST, ALL_REST, *tokens]
    chosen = st.selectbox("Whose state", names, index=len(names) - 1, key="learn_token")
    return {"token": names.index(chosen)}


def stream(values: Values) -> None:
    """Draw the norms of a state and of what is added to it."""
    data, norms, index = lesson_data(), bundled_distances().norms, values["token"]
    lengths, updates = [
        (norms.first, data.updates.first),
        (norms.rest, data.updates.rest),
        *zip(data.sentence.norms, data.sentence.updates, strict=True),
    ][index]
    state, added = lengths.tolist(), updates.tolist()
    chart(figures.stream_figure(state, added, dark=dark()), "learn_stream", figures.stream_alt(state, added))


# Angle: between two boundaries, with a number that the reader can compute again.


def angle_block(_: Values) -> Values:
    """Choose the block, and put its numbers into the formula."""
    sentence = lesson_data().sentence
    block = block_inputs("learn_angle", FIRST_BLOCK, bundled().model.num_layers) or FIRST_BLOCK
    first, last = block.start, block.start + block.n
    one, other = (float(sentence.gram[i, i]) ** 0.5 for i in (first, last))
    return {
        "block": block,
        "before": f"x^{{({first})}}",
        "after": f"x^{{({last})}}",
        "block_dot": f"{float(sentence.gram[first, last]):.1f}",
        "block_norms": rf"{one:.2f}\times {other:.2f}",
        "block_angle": f"{sentence.angle(block):.4f}",
    }


def compute_angle(values: Values) -> Values:
    """Show how the number is computed by hand and in Python."""
    sentence, block = lesson_data().sentence, values["block"]
    with st.expander("Compute it yourself", icon=":material/calculate:"):
        st.markdown(f"With a calculator: arccos of {sentence.cosine(block):.6f} in radians, divided by π. In Python:")
        st.code(angle_lines(sentence.text, block), language="python")
    return {}


def angle(values: Values) -> None:
    """Draw the two states as arrows."""
    sentence, block = lesson_data().sentence, values["block"]
    chart(figures.angle_figure(sentence, block, dark=dark()), "learn_angle_picture", figures.angle_alt(sentence, block))


# Map: reading it, by questions that are answered on it.

MAP_KEY, START, N, QUESTION, ANSWERS = "learn_map", "learn_answer_start", "learn_answer_n", "learn_question", "learned"


def quiz(_: Values) -> Values:
    """Ask about the map; the answer is typed here or clicked there, and a right one leads on."""
    run, distances, state = bundled(), bundled_distances(), s.session()
    layers, questions = run.model.num_layers, map_questions(distances, run.model)
    answers: dict[int, Block] = state.setdefault(ANSWERS, {})
    number = int(
        st.segmented_control(
            "Question", range(1, len(questions) + 1), default=1, required=True, key=QUESTION, on_change=_recall_answer
        )
        or 1
    )
    question = questions[number - 1]
    st.markdown(f"**{question.ask}** Click it, or type it here:")
    if START not in state:
        _recall_answer(number)
    with st.container(horizontal=True, gap="small"):
        start = st.number_input("start layer", 0, layers - 1, key=START, width=130, placeholder="start", value=None)
        n = st.number_input("n, layers", 1, layers, key=N, width=130, placeholder="n", value=None)
    typed = start is not None and n is not None
    block = checked_block(start, n, layers) if start is not None and n is not None else None
    if block is not None:
        answers[number] = block
    if _feedback(question, block, typed) and number < len(questions):
        st.button(
            "Next question",
            icon=":material/arrow_forward:",
            key="learn_next_question",
            on_click=_ask,
            args=(number + 1,),
        )
    return {"block": block, "example": question.example}


def _feedback(question: MapQuestion, block: Block | None, typed: bool) -> bool:
    """Say how the answer stands; return whether it is right."""
    with st.container(height=96, border=False):  # its place is kept, so that nothing jumps when the answer comes
        if block is None:
            st.caption("That block does not fit into the model." if typed else f"Hint: {question.hint}")
            return False
        is_right, says = verdict(question, block, bundled_distances().criteria[CRITERION])
        if is_right:
            st.success(says, icon=":material/check_circle:")
        else:
            st.info(says, icon=":material/replay:")
        return is_right


def _ask(number: int) -> None:
    s.session()[QUESTION] = number
    _recall_answer(number)


def _recall_answer(number: int | None = None) -> None:
    """Put the answer that was given to a question into its inputs, or nothing."""
    state = s.session()
    answered: Block | None = state.get(ANSWERS, {}).get(number or state.get(QUESTION))
    state[START], state[N] = (answered.start, answered.n) if answered is not None else (None, None)


def question_map(values: Values) -> None:
    """Draw the map that is asked about."""
    run, distances = bundled(), bundled_distances()
    view = charts.MapView(selected=values["block"], dark=dark())
    figure = charts.distance_map(distances, CRITERION, run.model, view)
    figure.update_layout(height=440, font={"family": PAGE_FONT})
    alt = map_alt(distances, CRITERION, run.model)
    chart(figure, MAP_KEY, alt, words="", on_select=_clicked, selection_mode="points")


def _clicked() -> None:
    state = s.session()
    block = parse_selection(state.get(MAP_KEY), bundled().model.num_layers)
    if block is not None:
        state[START], state[N] = block.start, block.n


# Last token: at which position the angle is taken.


def last_block(_: Values) -> Values:
    """Choose the block whose angle is shown by position."""
    block = block_inputs("learn_last", FIRST_BLOCK, bundled().model.num_layers) or FIRST_BLOCK
    at_first = with_error(*lesson_data().positions[0].grid.at(block))
    return {"block": block, "last_words": layer_words(block.start, block.n), "at_first": at_first}


def best_by_position(values: Values) -> Values:
    """List the best block of this size by the angle at some positions."""
    positions, n = lesson_data().positions, values["block"].n
    st.markdown(f"**Best block of {n}** by the angle at some positions:")
    chosen = [positions[k] for k in (0, 1, 4, len(positions) - 2, len(positions) - 1)]
    st.markdown("\n".join(_best_line(p, n) for p in chosen))
    return {}


def _best_line(position: PositionAngles, n: int) -> str:
    start = best_start(position.grid, n)
    where = "the last token" if position is lesson_data().positions[-1] else f"position {position.words}"
    return f"- {where}: {layer_words(start, n)}" if start is not None else ""


def positions(values: Values) -> None:
    """Draw the angle by position."""
    found, block = lesson_data().positions, values["block"]
    chart(figures.positions_figure(found, block, dark=dark()), "learn_positions", figures.positions_alt(found, block))


# Loss: where the distance parts from it, with the sink layer in the light.

CRITERIA = ("angular_last", "angular_mean", "block_influence")
POINTS, SPOTLIGHT = "learn_points", "learn_spotlight"


def criterion(_: Values) -> Values:
    """Choose the criterion that predicts."""
    return {
        "criterion": st.selectbox("Predicted by", CRITERIA, format_func=criteria.label, key="learn_criterion"),
    }


def spotlight(values: Values) -> Values:
    """Choose the single layer that is ringed; the table sets it beside its neighbours."""
    layers = bundled().model.num_layers
    layer = int(
        st.number_input("Ring this single layer", 0, layers - 1, value=values["sink"], key=SPOTLIGHT, width=200)
    )
    grid = bundled_distances().criteria[values["criterion"]]
    return {"layer": layer, "neighbours": _neighbours(grid, bundled_losses().increase, layer)}


def _neighbours(grid: Grid, increase: Grid, layer: int) -> str:
    rows = []
    for i in range(max(0, layer - 1), min(grid.num_layers, layer + 2)):
        block = Block(start=i, n=1)
        name = f"**{i}**" if i == layer else str(i)
        rows.append([name, with_error(*grid.at(block)), with_error(*increase.at(block), sign=True)])
    return Table(right("layer", "angle, of π", "measured increase, nats"), rows).markdown()


def agreement(values: Values) -> None:
    """Draw predicted against measured."""
    distances, losses, name = bundled_distances(), bundled_losses(), values["criterion"]
    layer = Block(start=values["layer"], n=1)
    figure = loss_charts.agreement_figure(distances, losses, name, layer, dark())
    figure.update_layout(height=figures.HEIGHT, font={"family": PAGE_FONT, "size": 12})
    alt = _loss_alt(distances.criteria[name], losses.increase, values["sink"])
    words = f"{alt} Measured on {counted(losses.text.tokens, 'token')} of {losses.text.source}."
    chart(figure, POINTS, alt, words=words, on_select=_ring, selection_mode="points")


def _loss_alt(grid: Grid, increase: Grid, sink: int) -> str:
    block = Block(start=sink, n=1)
    return (
        f"Layer {sink} is number {grid.rank(block)} of {grid.num_layers} by the prediction and number "
        f"{increase.rank(block)} by the measured loss, which is {with_error(*increase.at(block))} nats higher without "
        "it."
    )


def _ring() -> None:
    state = s.session()
    block = parse_selection(state.get(POINTS), bundled().model.num_layers)
    if block is not None and block.n == 1:
        state[SPOTLIGHT] = block.start


# Curve: what happens as more is removed.


def removed(_: Values) -> Values:
    """Choose how many layers go."""
    data, increase = lesson_data(), bundled_losses().increase
    sizes = [len(a.removed) for a in data.cuts if a.removed]
    n = st.select_slider("Layers removed", sizes, value=sizes[1], key="learn_n")
    answers = next(a for a in data.cuts if len(a.removed) == n)
    start, best = answers.removed[0], best_start(increase, n, bundled().model)
    shares = [f"{kind} {data.right(answers, kind)[0]} of {data.right(answers, kind)[1]}" for kind in KINDS]
    return {
        "n": n,
        "block": Block(start=start if best is None else best, n=n),
        "removed_words": layer_words(start, n),
        "removed_loss": with_error(*increase.at(Block(start=start, n=n))),
        "removed_right": ", ".join(shares),
    }


def curve(values: Values) -> None:
    """Draw loss and right answers against the number of layers removed."""
    data, found = lesson_data(), curve_from_map(bundled_losses(), bundled_distances(), bundled().model)
    chart(figures.curve_figure(data, found, values["n"], dark=dark()), "learn_curve", figures.curve_alt(data))


# Healing: the ledger of a cut, what it lost and what came back.


def ledger(_: Values) -> Values:
    """Choose one of the cuts that were repaired and healed."""
    ledgers = {f"without layers {layers_text(found.removed)}": found for found in bundled().ledgers}
    chosen = st.selectbox("The cut", list(ledgers), key="learn_ledger") if ledgers else None
    if chosen is None:
        return {"ledger": None, "block": FIRST_BLOCK}
    gone = ledgers[chosen].removed
    return {"ledger": ledgers[chosen], "block": Block(start=gone[0], n=gone[-1] - gone[0] + 1)}


def ledger_bars(values: Values) -> None:
    """Draw the ledger."""
    found = values["ledger"]
    if found is None:
        st.info("The bundled run of this version has no ledger: nothing was repaired or healed in it.")
        return
    chart(figures.ledger_figure(found, dark=dark()), "learn_bars", figures.ledger_alt(found))
    tokens = f"{counted(found.text.rows, 'window')} of {found.text.source}, {counted(found.text.tokens, 'token')}"
    st.caption(f"All on the same {tokens}.")


# Limits: which questions each model still answers.

GRID, KIND, ASKED = "learn_grid", "learn_kind", "learn_asked"


def question(_: Values) -> Values:
    """Choose a question, and show what each model wrote."""
    data = lesson_data()
    kind = st.segmented_control("Kind of question", KINDS, default="arithmetic", required=True, key=KIND) or KINDS[0]
    asked = [i for i, q in enumerate(data.questions) if q.kind == kind]
    number = asked[int(st.number_input("Question", 1, len(asked), value=1, key=ASKED, width=130)) - 1]
    lines = [data.questions[number].prompt, ""]
    for answers in data.answers:
        mark = "right" if data.questions[number].right(answers.written[number]) else "wrong"
        lines.append(f"{answers.label:14} {mark}  {' '.join(answers.written[number].split())}")
    st.code("\n".join(lines), language=None, wrap_lines=True)
    return {"kind": kind}


def answers(values: Values) -> None:
    """Draw which questions each of the models answers."""
    data, kind = lesson_data(), values["kind"]
    alt = figures.answers_alt(data, kind)
    figure, words = figures.answers_figure(data, kind, dark=dark()), "A disc is a right answer, a cross a wrong one."
    chart(figure, GRID, alt, words=f"{words} {alt}", on_select=_asked, selection_mode="points")


def _asked() -> None:
    state = s.session()
    row = (first_chosen(state.get(GRID), "points") or {}).get("y")
    if isinstance(row, int) and not isinstance(row, bool):
        state[ASKED] = row


def limits_values() -> Values:
    """Return what the repaired and healed models won back, of loss and answers."""
    return recovery(lesson_data(), bundled().ledgers[0]) if bundled().ledgers else {"answered": False}


def _way_out(label: str, view: Mapping[str, str], to: Callable[[Values], Block | None]) -> Callable[[Values], Values]:
    def button(values: Values) -> Values:
        for_real(label.format(**values), to(values), **{k: v.format(**values) for k, v in view.items()})
        return {}

    return button


_chosen: Callable[[Values], Block | None] = lambda values: values["block"]  # noqa: E731

CONTROLS: Mapping[str, Callable[[Values], Values]] = {
    "token": token,
    "angle_block": angle_block,
    "compute_angle": compute_angle,
    "quiz": quiz,
    "last_block": last_block,
    "best_by_position": best_by_position,
    "criterion": criterion,
    "spotlight": spotlight,
    "removed": removed,
    "ledger": ledger,
    "question": question,
    "see_map": _way_out("See the map these layers make", {"view": "Map"}, lambda _: None),
    "open_block": _way_out("Open this block on the map", {"criterion": "angular_last", "view": "Map"}, _chosen),
    "explore_map": _way_out(
        "Explore the whole map",
        {"criterion": CRITERION, "view": "Map"},
        lambda values: values["block"] or values["example"],
    ),
    "compare_tokens": _way_out(
        "Compare “last token” with “all tokens” on the map", {"criterion": "angular_mean", "view": "Map"}, _chosen
    ),
    "measure_layer": _way_out(
        "Measure layer {layer} on the map",
        {"criterion": "nll_increase", "view": "Map", "scale": "value"},
        lambda values: Block(start=values["layer"], n=1),
    ),
    "open_curve": _way_out("Open the curve of all strategies", {"criterion": "nll_increase", "view": "Curve"}, _chosen),
    "choose_cut": _way_out("Choose this cut for real", {"criterion": "nll_increase", "view": "Map"}, _chosen),
    "own_prompt": _way_out("Run a prompt of your own before and after a cut", {"view": "Map"}, lambda _: FIRST_BLOCK),
}
"""By the name that stands in `[control: NAME]`; the values of one may be named by all text below it."""

FIGURES: Mapping[str, Callable[[Values], None]] = {
    "stream": stream,
    "angle": angle,
    "map": question_map,
    "positions": positions,
    "agreement": agreement,
    "curve": curve,
    "ledger": ledger_bars,
    "answers": answers,
}
