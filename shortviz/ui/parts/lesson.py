"""What the lessons share: the bundled run, a block to choose, and the way to where one does it for real."""

from collections.abc import Mapping

import streamlit as st

from shortviz.errors import ShortvizError
from shortviz.lessons.figures import TERMS
from shortviz.records.measured import BlockDistances, BlockLosses
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.service.service import EXAMPLE
from shortviz.ui.parts.notes import dark
from shortviz.ui.parts.strip import component
from shortviz.ui.session import opened
from shortviz.ui.session import state as s
from shortviz.ui.session.service import bench
from shortviz.ui.session.shown import checked_block


def bundled() -> Run:
    """Return the bundled run."""
    run = bench().runs.get(EXAMPLE)
    if run is None:
        raise ShortvizError("This installation does not carry the bundled run; make it with `make example`.")
    return run


def bundled_distances() -> BlockDistances:
    """Return the predicted map of the bundled run."""
    found = bundled().distances
    assert found is not None
    return found


def bundled_losses() -> BlockLosses:
    """Return the measured map of the bundled run."""
    found = bundled().losses
    assert found is not None
    return found


def light_up() -> None:
    """Let coloured terms of the formulas and the lines of the figure light each other up under the pointer."""
    component("light")(data={"pairs": [(shades[dark()], line) for line, *shades in TERMS.values()]}, key="light")


def block_inputs(key: str, first: Block, num_layers: int) -> Block | None:
    """Draw two numbers that choose a block; None, and a sentence, where they do not fit."""
    start_key, n_key = f"{key}_start", f"{key}_n"
    with st.container(horizontal=True, gap="small"):
        start = st.number_input("start layer", 0, num_layers - 1, value=first.start, key=start_key, width=130)
        n = st.number_input("n, layers", 1, num_layers, value=first.n, key=n_key, width=130)
    block = checked_block(start, n, num_layers)
    if block is None:
        st.caption(f":material/info: Start {start} with n {n} goes past layer {num_layers - 1}: lower one of them.")
    return block


def choose_on_map(block: Block | None = None, view: Mapping[str, str] | None = None) -> None:
    """Choose a block and a view of the bundled run, and leave for the map: what a button does before the page runs."""
    state = s.session()
    if view or block is not None:
        opened.open_run(bench(), state, EXAMPLE)
    if block is not None:
        s.set_block(state, block)
    for key, value in (view or {}).items():
        state[key] = value
    s.leave_for(state, "Map")


def for_real(label: str, block: Block | None = None, **view: str) -> None:
    """Draw the button that opens the page where one does this for real, prefilled; `view` are the map's own choices."""
    st.button(label, icon=":material/open_in_new:", key="learn_real", on_click=choose_on_map, args=(block, view))
