"""The smallest page that uses the map's click recipe, for the test of the recipe itself.

`?layers=4` sets the depth of the model; with `?live=1` the map is redrawn every two seconds, as during a measurement.
"""

import streamlit as st

from shortviz.figures.cells import map_alt
from shortviz.figures.map import MapView, distance_map
from shortviz.records.plan import Block
from shortviz.ui.parts.pointer import map_chart
from tests.support.records import fixture_distances, fixture_model

LAYERS = int(st.query_params.get("layers", 30))
LIVE = "live" in st.query_params
MODEL = fixture_model(LAYERS)
st.set_page_config(layout="wide")
st.session_state.setdefault("start", 0)
st.session_state.setdefault("n", 1)
st.session_state.setdefault("drawn", 0)


def choose(block: Block | None) -> None:
    if block is not None:
        st.session_state["start"], st.session_state["n"] = block.start, block.n


@st.fragment(run_every=2 if LIVE else None)
def page() -> None:
    st.session_state["drawn"] += 1
    distances = fixture_distances(LAYERS, seed=st.session_state["drawn"] if LIVE else 0)
    left, right = st.columns([3, 2])
    with right:
        start = st.number_input("Start layer", 0, LAYERS - 1, key="start")
        n = st.number_input("n", 1, LAYERS, key="n")
        st.text(f"chosen start {start} n {n}")
        st.text(f"drawn {st.session_state['drawn']} times")
    with left:
        figure = distance_map(distances, "angular_last", MODEL, MapView(dark=st.context.theme.type == "dark"))
        chosen = Block(start=int(start), n=int(n))
        map_chart(figure, LAYERS, chosen, choose, key="map", alt=map_alt(distances, "angular_last", MODEL))


page()
