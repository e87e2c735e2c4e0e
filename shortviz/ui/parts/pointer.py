"""A map that is pointed at: a click, a tap or the arrow keys choose a block, and its words stand beside the cells.

Plotly draws; a transparent pane above it takes the mouse, fingers and keys. The pane outlives the chart: a click while
the chart is drawn anew is not lost, the outline follows at once, and choosing a block draws nothing anew.
"""

from collections.abc import Callable
from importlib import resources

import plotly.graph_objects as go
import streamlit as st

from shortviz.records.plan import Block
from shortviz.ui.session import state as s
from shortviz.ui.session.shown import FONT, checked_block

_FILES = resources.files("shortviz") / "templates"
_PANE = st.components.v2.component(
    "shortviz_map_pane", css=(_FILES / "pane.css").read_text("utf-8"), js=(_FILES / "pane.js").read_text("utf-8"),
    isolate_styles=False,
)  # fmt: skip


def tall_box(key: str) -> str:
    """Return the key of the container of a map that ends where the window does, and of what keeps its place."""
    return f"{key}_tall_pane_box"


def map_chart(
    figure: go.Figure,
    layers: int,
    chosen: Block | None,
    on_choose: Callable[[Block | None], None],
    *,
    key: str,
    alt: str,
    height: int | None = None,
) -> None:
    """Draw a map that answers the mouse, fingers and arrow keys; without a `height` it ends where the window does.

    `figure` carries no outline: the pane draws it. `on_choose` is called with the block that a person chose.
    """
    figure.update_layout(height=height, hovermode=False, font={"family": FONT, "size": 11})
    box = tall_box(key) if height is None else f"{key}_pane_box"
    with st.container(key=box, gap=None, height="stretch" if height is None else "content"):
        st.plotly_chart(
            figure, theme=None, key=key, height=height or "stretch", alt=alt,
            config={"displayModeBar": False, "staticPlot": True},
        )  # fmt: skip
        _PANE(
            key=f"{key}_pane",
            data={
                "box": box,
                "layers": layers,
                "chosen": [chosen.start, chosen.n] if chosen is not None else None,
                "label": f"Map of {layers} layers: arrow keys choose a block. {alt}",
            },
            on_cell_change=lambda: _pointed(f"{key}_pane", layers, on_choose),
        )


def _pointed(key: str, layers: int, on_choose: Callable[[Block | None], None]) -> None:
    cell = getattr(s.session().get(key), "cell", None)
    if isinstance(cell, list) and len(cell) == 2:
        on_choose(checked_block(cell[0], cell[1], layers))
