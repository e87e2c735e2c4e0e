"""The Runs page: a table of what was measured before; choosing one opens it on the map."""

import streamlit as st

from shortviz.records import Run
from shortviz.runs import list_runs
from shortviz.ui import state as s
from shortviz.ui.resources import bench
from shortviz.ui.shelves import EXAMPLE


def draw() -> None:
    """Draw the page."""
    tools = bench()
    found = [(folder.name, run) for folder, run in list_runs(tools.runs.folder)]
    example = tools.runs.get(EXAMPLE)
    rows = found + ([(EXAMPLE, example)] if example is not None else [])
    st.subheader("Runs")
    st.caption("Choose a row to open it on the map. Everything that needs no model works at once.")
    st.dataframe(
        [_row(key, run) for key, run in rows],
        key="runs_table",
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        alt="Saved runs: model, text, what was measured, when",
    )
    chosen = st.session_state["runs_table"]["selection"]["rows"]
    if chosen and chosen[0] < len(rows):
        s.open_run(s.session(), rows[chosen[0]][0])
        st.switch_page("pages/map.py", query_params={})


def _row(key: str, run: Run) -> dict[str, object]:
    return {
        "model": run.model.id,
        "layers": run.model.num_layers,
        "text": run.text.source,
        "rows": run.distances.samples if run.distances is not None else 0,
        "blocks measured": len(run.evaluations),
        "when (UTC)": run.created[:16].replace("T", " "),
        "name": "bundled" if key == EXAMPLE else run.name or key,
    }
