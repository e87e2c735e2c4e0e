"""Lessons on the map: reading it, and which token its angles are taken at."""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from shortviz import charts, lesson_charts
from shortviz.lesson_data import PositionAngles, lesson_data
from shortviz.lesson_quiz import CRITERION, MapQuestion, map_questions, verdict
from shortviz.planning import best_start
from shortviz.records import Block
from shortviz.ui import state as s
from shortviz.ui.learn_parts import block_inputs, bundled, bundled_distances, chart, dark, for_real
from shortviz.ui.selection import checked_block, parse_selection
from shortviz.words import layer_words

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
        figure.update_layout(height=440, font={"family": lesson_charts.FONT})
        st.plotly_chart(
            figure,
            theme=None,
            key=MAP_KEY,
            on_select=lambda: _clicked(state, layers),
            selection_mode="points",
            config={"displaylogo": False},
            alt=charts.map_alt(distances, CRITERION, run.model),
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
        figure = lesson_charts.positions_figure(positions, block, dark=dark())
        chart(figure, "learn_positions", lesson_charts.positions_alt(positions, block))


def _best_line(position: PositionAngles, n: int) -> str:
    start = best_start(position.grid, n)
    where = "the last token" if position is lesson_data().positions[-1] else f"position {position.words}"
    return f"- {where}: {layer_words(start, n)}" if start is not None else ""
