"""The smallest page that uses the map's click recipe, for the test of the recipe itself."""

import streamlit as st

from shortviz.charts import MapView, distance_map, map_alt
from shortviz.records import Block
from tests.records_fixture import fixture_distances, fixture_model

LAYERS = int(st.query_params.get("layers", 30))
DISTANCES, MODEL = fixture_distances(LAYERS), fixture_model(LAYERS)
st.set_page_config(layout="wide")
st.session_state.setdefault("start", 0)
st.session_state.setdefault("n", 1)


def choose() -> None:
    points = st.session_state["map"].selection.points
    if points:
        st.session_state["start"], st.session_state["n"] = map(int, points[0]["customdata"][:2])


left, right = st.columns([3, 2])
with right:
    start = st.number_input("Start layer", 0, LAYERS - 1, key="start")
    n = st.number_input("n", 1, LAYERS, key="n")
    st.text(f"chosen start {start} n {n}")
with left:
    view = MapView(selected=Block(start=int(start), n=int(n)), dark=st.context.theme.type == "dark")
    st.plotly_chart(
        distance_map(DISTANCES, "angular_last", MODEL, view),
        key="map",
        on_select=choose,
        selection_mode="points",
        alt=map_alt(DISTANCES, "angular_last", MODEL),
    )
