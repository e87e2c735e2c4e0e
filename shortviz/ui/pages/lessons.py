"""Lessons on measured loss: where the distance parts from it, and what happens as more is removed."""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from shortviz import criteria
from shortviz.analysis.curve import curve_from_map
from shortviz.analysis.planning import best_start
from shortviz.figures import losses as loss_charts
from shortviz.figures import map as charts
from shortviz.figures.cells import map_alt
from shortviz.lessons import figures
from shortviz.lessons.data import KINDS, LessonData, PositionAngles, lesson_data
from shortviz.lessons.quiz import CRITERION, MapQuestion, angle_lines, map_questions, verdict
from shortviz.records.formatting import counted, layer_words, layers_text, with_error
from shortviz.records.ledger import Ledger
from shortviz.records.measured import Grid
from shortviz.records.plan import Block
from shortviz.records.table import Table, right
from shortviz.ui.parts.lesson import block_inputs, bundled, bundled_distances, bundled_losses, chart, dark, for_real
from shortviz.ui.session import state as s
from shortviz.ui.session.shown import checked_block, parse_selection

CRITERIA = ("angular_last", "angular_mean", "block_influence")
POINTS = "learn_points"
SPOTLIGHT = "learn_spotlight"


def loss(words: DeltaGenerator, picture: DeltaGenerator) -> None:
    """Draw predicted against measured, with the sink layer in the light."""
    run, distances, losses = bundled(), bundled_distances(), bundled_losses()
    layers, state = run.model.num_layers, s.session()
    sink = next(iter(distances.norms.sink_layers), layers // 2)
    with words:
        st.markdown(
            "The map **predicts**. To **measure**, take the block out and score the model on text that it was not "
            "chosen "
            "on: the increase of its loss, in nats per token. Each point is a block; were the prediction perfect, the "
            "points would lie on one rising line."
        )
        name = st.selectbox("Predicted by", CRITERIA, format_func=criteria.label, key="learn_criterion")
        layer = st.number_input("Ring this single layer", 0, layers - 1, value=sink, key=SPOTLIGHT, width=200)
        grid = distances.criteria[name]
        st.markdown(_neighbours(grid, losses.increase, int(layer)))
        st.markdown(
            f"**Where they part.** Layer {sink} writes the attention sink. Its angle is like its neighbours'; its loss "
            "is not. A criterion that looks only at directions of later tokens cannot see it."
        )
        for_real(
            f"Measure layer {layer} on the map", Block(start=int(layer), n=1), show="measured", view="Map", scale="raw"
        )
    with picture:
        figure = loss_charts.agreement_figure(distances, losses, name, Block(start=int(layer), n=1), dark())
        figure.update_layout(height=figures.HEIGHT, font={"family": figures.FONT, "size": 12})
        st.plotly_chart(
            figure,
            theme=None,
            key=POINTS,
            config={"displaylogo": False},
            on_select=lambda: _ring(state, layers),
            selection_mode="points",
            alt=_loss_alt(grid, losses.increase, sink),
        )
        st.caption(
            f"{_loss_alt(grid, losses.increase, sink)} "
            f"Measured on {counted(losses.text.tokens, 'token')} of {losses.text.source}."
        )


def _neighbours(grid: Grid, increase: Grid, layer: int) -> str:
    rows = []
    for i in range(max(0, layer - 1), min(grid.num_layers, layer + 2)):
        block = Block(start=i, n=1)
        name = f"**{i}**" if i == layer else str(i)
        rows.append([name, with_error(*grid.at(block)), with_error(*increase.at(block), sign=True)])
    return Table(right("layer", "angle, of π", "measured increase, nats"), rows).markdown()


def _loss_alt(grid: Grid, increase: Grid, sink: int) -> str:
    block = Block(start=sink, n=1)
    return (
        f"Layer {sink} is number {grid.rank(block)} of {grid.num_layers} by the prediction and number "
        f"{increase.rank(block)} by the measured loss, which is {with_error(*increase.at(block))} nats higher without "
        "it."
    )


def _ring(state: s.State, layers: int) -> None:
    block = parse_selection(state.get(POINTS), layers)
    if block is not None and block.n == 1:
        state[SPOTLIGHT] = block.start


def curve(words: DeltaGenerator, picture: DeltaGenerator) -> None:
    """Draw loss and right answers against the number of layers removed."""
    run, distances, losses, data = bundled(), bundled_distances(), bundled_losses(), lesson_data()
    sizes = [len(a.removed) for a in data.cuts if a.removed]
    with words:
        st.markdown(
            "Remove the best block of each size. The **loss** below rises steadily. What the model can *do*, above, "
            f"falls in steps and at different moments: {len(data.questions)} short questions, a quarter of each kind, "
            "right "
            "when the most likely continuation begins with the answer."
        )
        n = st.select_slider("Layers removed", sizes, value=sizes[1], key="learn_n")
        answers = next(a for a in data.cuts if len(a.removed) == n)
        start = answers.removed[0]
        increase = losses.increase.at(Block(start=start, n=n))
        st.markdown(
            f"Without {layer_words(start, n)} the loss is {with_error(*increase)} nats higher; answered rightly: "
            + ", ".join(f"{kind} {data.right(answers, kind)[0]} of {data.right(answers, kind)[1]}" for kind in KINDS)
            + "."
        )
        st.markdown(
            "In large models the paper finds the same shape, later: question answering stays flat until a quarter to a "
            "half of the layers are gone, then drops at once, while the healed loss rises smoothly."
        )
        best = best_start(losses.increase, n, run.model)
        block = Block(start=start if best is None else best, n=n)
        for_real("Open the curve of all strategies", block, show="measured", view="Curve")
    with picture:
        figure = figures.curve_figure(data, curve_from_map(losses, distances, run.model), n, dark=dark())
        chart(figure, "learn_curve", figures.curve_alt(data))


# Lessons on what repair and healing win back, and on what they do not.

GRID, KIND, LIMITS_QUESTION = "learn_grid", "learn_kind", "learn_asked"


def healing(words: DeltaGenerator, picture: DeltaGenerator) -> None:
    """Draw the ledger of a cut: what it lost and what came back."""
    ledgers = {_cut(ledger): ledger for ledger in bundled().ledgers}
    with words:
        st.markdown(
            "A cut leaves a **seam**: the layer after it gets a state that it was never trained on. Two things help. "
            "**Repair** changes the matrices just before the seam, in closed form, so that their output comes closer "
            "to what the removed block would have passed on; it takes a minute or so and needs no training. "
            "**Healing** trains a small adapter (LoRA) on text, for minutes to hours."
        )
        st.latex(
            r"\text{share won back} = 1 - \frac{\text{NLL} - \text{NLL}_\text{uncut}}"
            r"{\text{NLL}_\text{cut} - \text{NLL}_\text{uncut}}"
        )
        chosen = st.selectbox("The cut", list(ledgers), key="learn_ledger") if ledgers else None
        block = _block(ledgers[chosen].removed) if chosen is not None else Block(start=12, n=4)
        for_real("Choose this cut for real", block, show="measured", view="Map")
    with picture:
        if chosen is None:
            st.info("The bundled run of this version has no ledger: nothing was repaired or healed in it.")
            return
        ledger = ledgers[chosen]
        chart(
            figures.ledger_figure(ledger, dark=dark()),
            "learn_bars",
            figures.ledger_alt(ledger),
        )
        st.caption(
            f"All on the same {counted(ledger.text.rows, 'window')} of {ledger.text.source}, "
            f"{counted(ledger.text.tokens, 'token')}."
        )


def _cut(ledger: Ledger) -> str:
    return f"without layers {layers_text(ledger.removed)}"


def _block(removed: tuple[int, ...]) -> Block:
    return Block(start=removed[0], n=removed[-1] - removed[0] + 1)


def limits(words: DeltaGenerator, picture: DeltaGenerator) -> None:
    """Draw what the models write: which questions each of them still answers."""
    data, state = lesson_data(), s.session()
    with words:
        st.markdown(
            "A loss is an average over easy and hard tokens. What a cut takes away shows in single answers: sums go "
            "before facts, and repeating exactly what was just read goes early too. Healing brings the loss down "
            "sooner than it brings these back."
        )
        kind = (
            st.segmented_control("Kind of question", KINDS, default="arithmetic", required=True, key=KIND) or KINDS[0]
        )
        asked = [i for i, q in enumerate(data.questions) if q.kind == kind]
        number = st.number_input("Question", 1, len(asked), value=1, key=LIMITS_QUESTION, width=130)
        _continuations(data, asked[int(number) - 1])
        st.caption("Written for this lesson, all of them shown, also those that the uncut model gets wrong.")
        for_real("Run a prompt of your own before and after a cut", Block(start=12, n=4), view="Map")
    with picture:
        figure = figures.answers_figure(data, kind, dark=dark())
        st.plotly_chart(
            figure,
            theme=None,
            key=GRID,
            on_select=lambda: _asked(state),
            selection_mode="points",
            config={"displaylogo": False},
            alt=figures.answers_alt(data, kind),
        )
        st.caption(f"A disc is a right answer, a cross a wrong one. {figures.answers_alt(data, kind)}")


def _continuations(data: LessonData, question: int) -> None:
    asked = data.questions[question]
    lines = [asked.prompt, ""]
    for answers in data.answers:
        mark = "right" if asked.right(answers.written[question]) else "wrong"
        written = " ".join(answers.written[question].split())
        lines.append(f"{answers.label:14} {mark}  {written}")
    st.code("\n".join(lines), language=None, wrap_lines=True)


def _asked(state: s.State) -> None:
    event = state.get(GRID)
    points = event["selection"]["points"] if event else []
    row = points[0].get("y") if points else None
    if isinstance(row, int) and not isinstance(row, bool):
        state[LIMITS_QUESTION] = row


# Lessons on the map: reading it, and which token its angles are taken at.

MAP_KEY, START, N, QUESTION = "learn_map", "learn_answer_start", "learn_answer_n", "learn_question"


def quiz(words: DeltaGenerator, picture: DeltaGenerator) -> None:
    """Draw the map with questions that are answered on it."""
    run, distances = bundled(), bundled_distances()
    layers, state = run.model.num_layers, s.session()
    questions = map_questions(distances, run.model)
    with words:
        st.markdown(
            "One cell is one possible cut: to the right, the **first layer removed**; upwards, **how many** go. The "
            "colour is the angle from before the block to after it, rescaled in each row: light is redundant, and the "
            "ring is the row's best. The empty half would end past the last layer."
        )
        numbers = list(range(1, len(questions) + 1))
        number = st.segmented_control(
            "Question", numbers, default=1, required=True, key=QUESTION, on_change=_forget_answer
        )
        question = questions[(number or 1) - 1]
        st.markdown(f"**Question {number}.** {question.ask} Click the cell, or type it:")
        with st.container(horizontal=True, gap="small"):
            start = st.number_input("start layer", 0, layers - 1, value=None, key=START, width=130, placeholder="start")
            n = st.number_input("n, layers", 1, layers, value=None, key=N, width=130, placeholder="n")
        block = checked_block(start, n, layers) if start is not None and n is not None else None
        _feedback(question, block, start is not None and n is not None)
        for_real("Explore the whole map", block or question.example, show="predicted", criterion=CRITERION, view="Map")
    with picture:
        view = charts.MapView(selected=block, dark=dark())
        figure = charts.distance_map(distances, CRITERION, run.model, view)
        figure.update_layout(height=440, font={"family": figures.FONT})
        st.plotly_chart(
            figure,
            theme=None,
            key=MAP_KEY,
            on_select=lambda: _clicked(state, layers),
            selection_mode="points",
            config={"displaylogo": False},
            alt=map_alt(distances, CRITERION, run.model),
        )


def _feedback(question: MapQuestion, block: Block | None, typed: bool) -> None:
    with st.container(height=96, border=False):  # its place is kept, so that nothing jumps when the answer comes
        if block is None:
            st.caption("That block does not fit into the model." if typed else f"Hint: {question.hint}")
            return
        right, says = verdict(question, block, bundled_distances().criteria[CRITERION])
        if right:
            st.success(says, icon=":material/check_circle:")
        else:
            st.info(says, icon=":material/replay:")


def _clicked(state: s.State, layers: int) -> None:
    block = parse_selection(state.get(MAP_KEY), layers)
    if block is not None:
        state[START], state[N] = block.start, block.n


def _forget_answer() -> None:
    state = s.session()
    state[START] = state[N] = None


def last_token(words: DeltaGenerator, picture: DeltaGenerator) -> None:
    """Draw the lesson on the position at which the angle is taken."""
    data, run = lesson_data(), bundled()
    with words:
        st.markdown(
            "A token sees only what comes before it. The **last token of a row** is the only one that has seen all of "
            "the text, so the paper takes its angles there. Position 0 has seen nothing, and its state is the "
            "attention sink, so long that hardly anything turns it: averages leave it out. From about the tenth token "
            "on the "
            f"angle settles. The picture: {data.text.rows} rows of {data.text.max_length} tokens of {data.text.source}."
        )
        block = block_inputs("learn_last", Block(start=12, n=4), run.model.num_layers) or Block(start=12, n=4)
        st.markdown(f"**Best block of {block.n}** by the angle at some positions:")
        positions = data.positions
        chosen = [positions[k] for k in (0, 1, 4, len(positions) - 2, len(positions) - 1)]
        st.markdown("\n".join(_best_line(p, block.n) for p in chosen))
        st.markdown("**Try it.** Choose layer 11 alone (start 11, n 1): at which position does it turn the state most?")
        for_real("Compare “last token” with “all tokens” on the map", block, criterion="angular_mean", view="Map")
    with picture:
        figure = figures.positions_figure(positions, block, dark=dark())
        chart(figure, "learn_positions", figures.positions_alt(positions, block))


def _best_line(position: PositionAngles, n: int) -> str:
    start = best_start(position.grid, n)
    where = "the last token" if position is lesson_data().positions[-1] else f"position {position.words}"
    return f"- {where}: {layer_words(start, n)}" if start is not None else ""


# Lessons on the residual stream and on the angle between its boundaries.

ALL_FIRST, ALL_REST = "64 rows of text, position 0", "64 rows of text, all other positions"
FIRST_BLOCK = Block(start=12, n=4)


def stream(words: DeltaGenerator, picture: DeltaGenerator) -> None:
    """Draw the lesson on what a layer adds."""
    data = lesson_data()
    with words:
        st.markdown(
            f"Inside a language model every token has a state: here a list of {bundled().model.hidden_size} numbers. "
            "A layer does not replace it. It reads it and **adds** a vector of its own, so the states run through the "
            "model like a stream, and layers can be taken out without breaking the pipe."
        )
        st.latex(r"x^{(i+1)} = x^{(i)} + f_i\big(x^{(i)}\big)")
        st.markdown("The line is the length of the state at each boundary; the bars are the length of what is added.")
        names = _tokens(data)
        chosen = st.selectbox("Whose state", names, index=len(names) - 1, key="learn_token")
        st.markdown(
            "**Try it.** Compare the first token with the last. Position 0 is special: one layer turns it into an "
            "*attention sink*, a huge state that later tokens attend to when they have nothing to look at."
        )
        for_real("See the map these layers make", view="Map")
    norms, updates = _states(data, names.index(chosen))
    with picture:
        alt = figures.stream_alt(norms, updates)
        chart(figures.stream_figure(norms, updates, dark=dark()), "learn_stream", alt)


def _tokens(data: LessonData) -> list[str]:
    tokens = [f"“{token.strip()}”, token {i} of “{data.sentence.text}”" for i, token in enumerate(data.sentence.tokens)]
    return [ALL_FIRST, ALL_REST, *tokens]


def _states(data: LessonData, index: int) -> tuple[list[float], list[float]]:
    norms = bundled_distances().norms
    if index == 0:
        return norms.first.tolist(), data.updates.first.tolist()
    if index == 1:
        return norms.rest.tolist(), data.updates.rest.tolist()
    sentence = data.sentence
    return sentence.norms[index - 2].tolist(), sentence.updates[index - 2].tolist()


def angle(words: DeltaGenerator, picture: DeltaGenerator) -> None:
    """Draw the lesson on the angle, with a number that the reader can compute again."""
    sentence = lesson_data().sentence
    layers = bundled().model.num_layers
    with words:
        st.markdown(
            "If the state after a block of layers points where it pointed before, the block changed little. So we "
            "measure the **angle** between the two, as a share of a half turn: 0 is the same direction, 0.5 is a right "
            f"angle. Here: the last token of “{sentence.text}”."
        )
        block = block_inputs("learn_angle", FIRST_BLOCK, layers) or FIRST_BLOCK
        first, last = block.start, block.start + block.n
        dot, one, other = (float(sentence.gram[i, j]) for i, j in ((first, last), (first, first), (last, last)))
        a, b = rf"x^{{({first})}}", rf"x^{{({last})}}"
        st.latex(rf"d = \frac{{1}}{{\pi}}\arccos\frac{{{a}\cdot {b}}}{{\|{a}\|\,\|{b}\|}}")
        st.latex(
            rf"= \frac{{1}}{{\pi}}\arccos\frac{{{dot:.1f}}}{{{one**0.5:.2f}\times {other**0.5:.2f}}} "
            rf"= {sentence.angle(block):.4f}"
        )
        with st.expander("Compute it yourself", icon=":material/calculate:"):
            st.markdown(
                "With a calculator: " + rf"arccos of {sentence.cosine(block):.6f} in radians, divided by π. In Python:"
            )
            st.code(angle_lines(sentence.text, block), language="python")
        for_real("Open this block on the map", block, criterion="angular_last", show="predicted", view="Map")
    with picture:
        figure = figures.angle_figure(sentence, block, dark=dark())
        chart(figure, "learn_angle", figures.angle_alt(sentence, block))
