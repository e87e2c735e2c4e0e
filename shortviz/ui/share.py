"""Taking things away: links, reproducing lines, and the numbers as files."""

import json

import pandas as pd
import streamlit as st

from shortviz.records import Block, Run
from shortviz.runs import run_json
from shortviz.ui import actions, snippets
from shortviz.ui import state as s
from shortviz.ui.address import link
from shortviz.ui.resources import Bench
from shortviz.ui.shown import Shown, ref_of


def buttons(tools: Bench, shown: Shown, block: Block) -> None:
    """Draw what can be done with the chosen block."""
    state = s.session()
    ref = ref_of(shown)
    with st.container(horizontal=True, gap="small"):
        if st.button("Export", icon=":material/download:", key="to_export"):
            st.switch_page("pages/export.py")
        with st.popover("Copy link", icon=":material/link:"):
            st.caption("Restores this view; it starts no work.")
            st.code(link(tools, state), language=None, wrap_lines=True)
        if ref is not None:
            spec = s.evaluation(state)
            with st.popover("Copy as Python", icon=":material/code:", width="content"):
                st.code(snippets.evaluate_python(ref, block, spec, actions.APP_WINDOWS), language="python")
            with st.popover("Command", icon=":material/terminal:", width="content"):
                st.code(snippets.evaluate_command(ref, block, spec, actions.APP_WINDOWS), language="bash")


def downloads(shown: Shown) -> None:
    """Draw the buttons that save the map's numbers."""
    run = shown.run
    if run is None or run.distances is None:
        return
    with st.container(horizontal=True, gap="small", width="content"):
        st.download_button(
            "CSV",
            data=lambda: map_csv(run),
            file_name="distances.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
            help="Every criterion for every block, one row per block.",
        )
        st.download_button(
            "JSON",
            data=lambda: json.dumps(run_json(run)),
            file_name="run.json",
            mime="application/json",
            icon=":material/download:",
            on_click="ignore",
            help="The whole run, as shortviz show RUN reads it.",
        )
        ref = ref_of(shown)
        if ref is not None:
            spec = s.calibration(s.session())
            with st.popover("Code", help="The command and the Python lines that measure this map."):
                st.code(snippets.measure_command(ref, spec), language="bash", wrap_lines=True)
                st.code(snippets.measure_python(ref, spec), language="python")


def map_csv(run: Run) -> str:
    """Return one row per block: start, n, and mean and standard error by every criterion."""
    distances = run.distances
    if distances is None:
        return ""
    layers = distances.num_layers
    blocks = [(start, n) for n in range(1, layers + 1) for start in range(layers - n + 1)]
    columns: dict[str, list[float]] = {"start": [b[0] for b in blocks], "n": [b[1] for b in blocks]}
    for name, grid in distances.criteria.items():
        columns[name] = [float(grid.mean[n - 1, start]) for start, n in blocks]
        columns[f"{name}_stderr"] = [float(grid.stderr[n - 1, start]) for start, n in blocks]
    return str(pd.DataFrame(columns).to_csv(index=False))
