"""The first screen, and the Learn page: one idea a screen, one picture each; the step is in the address."""

from typing import Any

import streamlit as st

from shortviz.lessons.course import Lesson, course, render
from shortviz.lessons.data import lesson_data
from shortviz.lessons.facts import facts
from shortviz.lessons.figures import TERMS
from shortviz.records.formatting import one_line
from shortviz.records.model import hub_id
from shortviz.service import policy
from shortviz.service.service import EXAMPLE
from shortviz.settings import settings
from shortviz.ui.pages.lessons import CONTROLS, FIGURES, limits_values
from shortviz.ui.parts import notes
from shortviz.ui.parts.lesson import bundled, bundled_losses, choose_on_map, light_up
from shortviz.ui.parts.notes import dark, main_button
from shortviz.ui.parts.stack import stack, stack_data
from shortviz.ui.session import state as s
from shortviz.ui.session.address import VIEW_PARAMETERS, went_back
from shortviz.ui.session.service import bench

STEPS = tuple(course())


def draw() -> None:
    """Draw the page."""
    if bench().runs.get(EXAMPLE) is None:
        st.info("This installation does not carry the bundled run that the lessons show; make it with `make example`.")
        return
    state = s.session()
    if went_back() and st.query_params.get(s.STEP) not in STEPS:
        # Streamlit 1.67 gives the widget of an address without it its default, which this one may not have (see below).
        # An address with a view of the map is that of a lesson that was left for the map.
        left = state.get(s.STEP) in STEPS and any(key in VIEW_PARAMETERS for key in st.query_params)
        state[s.STEP] = state[s.STEP] if left else STEPS[0]
        st.rerun()
    if state.get(s.STEP) not in STEPS:  # buttons set it too, so the widget may have no default of its own
        linked = st.query_params.get(s.STEP)
        state[s.STEP] = linked if linked in STEPS else STEPS[0]
        if linked and linked not in STEPS:
            notes.problem(f'The link\'s lesson "{one_line(linked, 40)}" is none of the course; it opens at the first.')
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.segmented_control(
            "Lesson",
            STEPS,
            required=True,
            key=s.STEP,
            bind="query-params",
            persist_state="session",
            label_visibility="collapsed",
            wrap=True,
        )
        st.button("Skip to the map", icon=":material/grid_on:", key="learn_skip", on_click=choose_on_map)
    step = state[s.STEP]
    lesson, number = course()[step], STEPS.index(step)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.subheader(f"{number + 1}. {lesson.title}")
        with st.container(horizontal=True, gap="small", width="content"):
            _move("Back", number - 1, ":material/arrow_back:")
            _move("Next", number + 1, ":material/arrow_forward:")
    _draw_lesson(lesson)
    st.markdown(f":small[Sources: {lesson.sources}.]")  # a caption is too faint for its links


def _draw_lesson(lesson: Lesson) -> None:
    """Draw text and controls in the order of the Markdown, and the figure beside them."""
    terms = {name: rf"\textcolor{{{shades[dark()]}}}" for name, (_, *shades) in TERMS.items()}
    values: dict[str, Any] = {**facts(bundled(), lesson_data()), **limits_values(), **terms}
    words, picture = st.columns([1, 1.3], gap="large")
    with words:
        for kind, piece in lesson.pieces:
            if kind == "control":
                values |= CONTROLS[piece](values)
            else:
                st.markdown(render(piece, values), unsafe_allow_html=True)  # words of the package
    with picture:
        FIGURES[lesson.figure](values)
    if any("{{ blue }}" in piece for _, piece in lesson.pieces):
        light_up()


def _move(label: str, to: int, icon: str) -> None:
    inside = 0 <= to < len(STEPS)
    st.button(
        f"{label}: {STEPS[to]}" if inside else label,
        icon=icon, disabled=not inside, type=main_button() if label == "Next" else "secondary",
        help=None if inside else "This is the first step." if to < 0 else "This is the last step: go on to the map.",
        key=f"learn_{label.lower()}", on_click=_go, args=(to,),
    )  # fmt: skip


def _go(to: int) -> None:
    s.session()[s.STEP] = STEPS[to]


INSTALL = "make setup\nmake run"


def draw_first() -> None:
    """Draw the first screen: what this is, the picture that shows it, and the two ways on; no model, and no wait."""
    st.title("Which layers of a language model can go?")
    st.markdown("Cut them out, see what it costs, keep a smaller model for transformers or llama.cpp.")
    if bench().runs.get(EXAMPLE) is not None:
        stack(_stack_data(), choose_on_map)
        losses = bundled_losses()
        st.caption(
            f"Measured on {hub_id(bundled().model.id)} ({bundled().model.num_layers} layers): the loss on "
            f"{int(losses.tokens.max()):,} tokens of {losses.text.source}, the words by taking the most likely each "
            "time."
        )
    with st.container(horizontal=True, gap="small"):
        words = "Learn how it works, 5 minutes"
        st.button(words, icon=":material/school:", type=main_button(), key="start_learn", on_click=_learn)
        st.button("See the whole map", icon=":material/grid_on:", key="start_map", on_click=choose_on_map)
    welcome = policy.welcome(settings())
    if welcome:
        st.markdown(welcome)
        st.code(INSTALL, language="bash")


@st.cache_data
def _stack_data() -> dict[str, object]:
    return stack_data(bundled().model, bundled_losses(), lesson_data().texts)


def _learn() -> None:
    state = s.session()
    state[s.STEP] = STEPS[0]
    s.leave_for(state, "Learn")
