"""The Learn page: one idea a screen, one picture each; the step is in the address."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from shortviz.records.formatting import one_line
from shortviz.service.service import EXAMPLE
from shortviz.ui.pages import lessons
from shortviz.ui.parts import notes
from shortviz.ui.parts.lesson import choose_on_map
from shortviz.ui.session import state as s
from shortviz.ui.session import state as visit
from shortviz.ui.session.address import VIEW_PARAMETERS, go_to, went_back
from shortviz.ui.session.polling import main_button
from shortviz.ui.session.service import bench


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """One screen of the course."""

    title: str
    draw: Callable[[DeltaGenerator, DeltaGenerator], None]
    """Draws words and controls into the first place, the picture into the second."""
    sources: str
    """Where the idea comes from; Markdown. A section number only where the paper's text was looked up (2026-11-24)."""


_GROMOV = "[Gromov et al. 2024](https://arxiv.org/abs/2403.17887)"
_SHORTGPT = "[ShortGPT, Men et al. 2024](https://arxiv.org/abs/2403.03853)"
_SINKS = "[Xiao et al. 2023, attention sinks](https://arxiv.org/abs/2309.17453)"
_MASSIVE = "[Sun et al. 2024, massive activations](https://arxiv.org/abs/2402.17762)"

LESSONS: Mapping[str, Lesson] = {
    "Stream": Lesson(
        title="A layer adds to the stream",
        draw=lessons.stream,
        sources=f"{_GROMOV}, section 3.1, equation 1; {_MASSIVE}; {_SINKS}, section 3.1",
    ),
    "Angle": Lesson(
        title="How far a block turns a state",
        draw=lessons.angle,
        sources=f"{_GROMOV}, section 3.2, equation 7",
    ),
    "Map": Lesson(
        title="Every possible cut on one map",
        draw=lessons.quiz,
        sources=f"{_GROMOV}, section 4.3",
    ),
    "Last token": Lesson(
        title="Why the last token",
        draw=lessons.last_token,
        sources=f"{_GROMOV}, section 3.2; {_SHORTGPT}, section 3.1, averages over all tokens instead",
    ),
    "Loss": Lesson(
        title="A distance predicts, a loss measures",
        draw=lessons.loss,
        sources=f"{_MASSIVE}; {_SINKS}, section 3.1; {_GROMOV}, section 4.2",
    ),
    "Curve": Lesson(
        title="The more you remove",
        draw=lessons.curve,
        sources=f"{_GROMOV}, sections 4.1 and 4.2",
    ),
    "Healing": Lesson(
        title="The seam, and what wins back",
        draw=lessons.healing,
        sources=f"{_GROMOV}, section 3.2 and appendix A; "
        "[ReplaceMe, Shopkhoev et al. 2025](https://arxiv.org/abs/2505.02819), section 2.2",
    ),
    "Limits": Lesson(
        title="What does not come back",
        draw=lessons.limits,
        sources=f"{_GROMOV}, section 5; [on the limits of layer pruning, 2026](https://arxiv.org/abs/2602.01997)",
    ),
}
STEPS = tuple(LESSONS)


def draw() -> None:
    """Draw the page."""
    if bench().runs.get(EXAMPLE) is None:
        st.info("This installation does not carry the bundled run that the lessons show; make it with `make example`.")
        return
    state = s.session()
    target = visit.take_target(state)
    if target:
        go_to(bench(), state, target)
    if went_back() and st.query_params.get(s.STEP) not in LESSONS:
        # Streamlit 1.67 gives the widget of an address without it its default, which this one may not have (see below).
        # An address with a view of the map is that of a lesson that was left for the map.
        left = state.get(s.STEP) in LESSONS and any(key in VIEW_PARAMETERS for key in st.query_params)
        state[s.STEP] = state[s.STEP] if left else STEPS[0]
        st.rerun()
    if state.get(s.STEP) not in LESSONS:  # buttons set it too, so the widget may have no default of its own
        linked = st.query_params.get(s.STEP)
        state[s.STEP] = linked if linked in LESSONS else STEPS[0]
        if linked and linked not in LESSONS:
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
        st.button(
            "Skip to the map", icon=":material/grid_on:", key="learn_skip", type=main_button(), on_click=choose_on_map
        )
    step = state[s.STEP]
    lesson, number = LESSONS[step], STEPS.index(step)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.subheader(f"{number + 1}. {lesson.title}")
        with st.container(horizontal=True, gap="small", width="content"):
            _move("Back", number - 1, ":material/arrow_back:")
            _move("Next", number + 1, ":material/arrow_forward:")
    words, picture = st.columns([1, 1.3], gap="large")
    lesson.draw(words, picture)
    st.markdown(f":small[Sources: {lesson.sources}.]")  # a caption is too faint for its links


def _move(label: str, to: int, icon: str) -> None:
    inside = 0 <= to < len(STEPS)
    st.button(
        f"{label}: {STEPS[to]}" if inside else label,
        icon=icon,
        disabled=not inside,
        key=f"learn_{label.lower()}",
        on_click=_go,
        args=(to,),
    )


def _go(to: int) -> None:
    s.session()[s.STEP] = STEPS[to]
