"""What happens when a person chooses a block, in whichever picture or table."""

import streamlit as st

from shortviz.records import Block
from shortviz.ui import state as s


def choose(block: Block | None) -> None:
    """Choose a block because a person did; its measurement is wanted."""
    if block is not None:
        s.set_block(s.session(), block)
        s.want(s.session(), "numbers")
        st.rerun()
