"""Lessons on what repair and healing win back, and on what they do not."""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from shortviz import lesson_answer_charts
from shortviz.ledger import Ledger
from shortviz.lesson_data import KINDS, LessonData, lesson_data
from shortviz.records import Block
from shortviz.ui import state as s
from shortviz.ui.learn_parts import bundled, chart, dark, for_real
from shortviz.words import counted, layers_text

GRID, KIND, QUESTION = "learn_grid", "learn_kind", "learn_asked"


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
            lesson_answer_charts.ledger_figure(ledger, dark=dark()),
            "learn_bars",
            lesson_answer_charts.ledger_alt(ledger),
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
        number = st.number_input("Question", 1, len(asked), value=1, key=QUESTION, width=130)
        _continuations(data, asked[int(number) - 1])
        st.caption("Written for this lesson, all of them shown, also those that the uncut model gets wrong.")
        for_real("Run a prompt of your own before and after a cut", Block(start=12, n=4), view="Map")
    with picture:
        figure = lesson_answer_charts.answers_figure(data, kind, dark=dark())
        st.plotly_chart(
            figure,
            theme=None,
            key=GRID,
            on_select=lambda: _asked(state),
            selection_mode="points",
            config={"displaylogo": False},
            alt=lesson_answer_charts.answers_alt(data, kind),
        )
        st.caption(f"A disc is a right answer, a cross a wrong one. {lesson_answer_charts.answers_alt(data, kind)}")


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
        state[QUESTION] = row
