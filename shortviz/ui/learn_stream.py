"""Lessons on the residual stream and on the angle between its boundaries."""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from shortviz import lesson_charts
from shortviz.lesson_data import LessonData, lesson_data
from shortviz.lesson_snippets import angle_lines
from shortviz.records import Block
from shortviz.ui.learn_parts import block_inputs, bundled, bundled_distances, chart, dark, for_real

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
        alt = lesson_charts.stream_alt(norms, updates)
        chart(lesson_charts.stream_figure(norms, updates, dark=dark()), "learn_stream", alt)


def _tokens(data: LessonData) -> list[str]:
    tokens = [f"“{token.strip()}”, token {i} of “{data.sentence.text}”" for i, token in enumerate(data.sentence.tokens)]
    return [ALL_FIRST, ALL_REST, *tokens]


def _states(data: LessonData, index: int) -> tuple[list[float], list[float]]:
    norms = bundled_distances().norms
    if index == 0:
        return lesson_charts.as_list(norms.first), lesson_charts.as_list(data.updates.first)
    if index == 1:
        return lesson_charts.as_list(norms.rest), lesson_charts.as_list(data.updates.rest)
    sentence = data.sentence
    return lesson_charts.as_list(sentence.norms[index - 2]), lesson_charts.as_list(sentence.updates[index - 2])


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
        figure = lesson_charts.angle_figure(sentence, block, dark=dark())
        chart(figure, "learn_angle", lesson_charts.angle_alt(sentence, block))
