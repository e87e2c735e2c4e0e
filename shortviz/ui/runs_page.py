"""The Runs page: everything measured before; open, name, compare, remove with undo, and take along as one file."""

import hashlib
from collections.abc import Mapping
from functools import partial

import streamlit as st

from shortviz.errors import ShortvizError
from shortviz.records import Run
from shortviz.run_files import file_name, pack_run, unpack_run
from shortviz.run_library import MOST_CHARACTERS
from shortviz.runs import EXAMPLES
from shortviz.settings import settings
from shortviz.ui import compare_view, visit
from shortviz.ui import state as s
from shortviz.ui.address import go_to
from shortviz.ui.bench import bench
from shortviz.ui.looks import main_button
from shortviz.ui.resources import Bench
from shortviz.ui.words import plain
from shortviz.words import counted

MOST_COMPARED = 4
_KEY_LENGTH = 12
_ROW_HEIGHT = 57
"""Words wrap in rows higher than 4 rem (Streamlit 1.67): long names then leave a phone room for what a run holds."""
_COLUMNS = {
    "name": st.column_config.TextColumn(width=150),
    "model": st.column_config.TextColumn(width=70),
    "measured": st.column_config.TextColumn(width=110),
}


def draw() -> None:
    """Draw the page."""
    tools, state = bench(), s.session()
    target = visit.take_target(state)
    if target:
        go_to(tools, state, target)
    runs = tools.runs.listed()
    visit.pick_runs(state, [key for key in visit.picked_runs(state) if key in runs])
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.subheader("Runs")
        if not settings().is_hosted:
            _import(tools)
    _undo(tools)
    _table(runs)
    st.multiselect(
        "Chosen runs",
        list(runs),
        format_func=lambda key: name_of(key, runs[key]),
        key=s.PICKED,
        max_selections=MOST_COMPARED,
        placeholder="Choose one to open it, or several to compare them",
    )
    picked = [key for key in visit.picked_runs(state) if key in runs]
    if picked:
        _buttons(tools, runs, picked)
    if len(picked) > 1:
        names = [name_of(key, runs[key]) for key in picked]
        unlike = [n if names.count(n) == 1 else f"{n} ({key})" for key, n in zip(picked, names, strict=True)]
        compare_view.draw({name: runs[key] for name, key in zip(unlike, picked, strict=True)})


def name_of(key: str, run: Run) -> str:
    """Return the name that a person knows a run by."""
    return f"{run.name} (bundled)" if key in EXAMPLES else run.name or key


def _table(runs: Mapping[str, Run]) -> None:
    keys = list(runs)
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:_KEY_LENGTH]
    # The selection is by row number: with other rows the table is a new one, or a click would mean another run.
    st.dataframe(
        [_row(key, run) for key, run in runs.items()],
        key=f"runs_table_{digest}",
        hide_index=True,
        on_select=partial(_chosen, f"runs_table_{digest}", keys),
        selection_mode="multi-row",
        row_height=_ROW_HEIGHT,
        column_config=_COLUMNS,
        alt=f"{len(runs)} runs: model, text, what was measured, when",
    )


def _row(key: str, run: Run) -> dict[str, object]:
    return {
        "name": name_of(key, run),
        "measured": _measured(run),
        "model": run.model.id,
        "layers": run.model.num_layers,
        "text": run.text.source,
        "rows": run.distances.samples if run.distances is not None else 0,
        "when (UTC)": run.created[:16].replace("T", " "),
    }


def _measured(run: Run) -> str:
    found = [f"{len(run.distances.criteria)} criteria"] if run.distances is not None else []
    if run.losses is not None:
        found.append("loss map" if run.losses.complete else "loss map, unfinished")
    cuts = sum(1 for e in run.evaluations if e.removed)
    found += [counted(cuts, "cut")] if cuts else []
    found += [counted(len(run.ledgers), "ledger")] if run.ledgers else []
    return ", ".join(found) or "nothing yet"


def _chosen(table: str, keys: list[str]) -> None:
    state = s.session()
    rows = state[table]["selection"]["rows"]
    visit.pick_runs(state, [keys[row] for row in rows if 0 <= row < len(keys)][:MOST_COMPARED])


def _buttons(tools: Bench, runs: Mapping[str, Run], picked: list[str]) -> None:
    first = picked[0]
    own = [key for key in picked if key not in EXAMPLES]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.button(
            plain(f"Open {name_of(first, runs[first])}") if len(picked) > 1 else "Open on the map",
            icon=":material/grid_on:",
            type=main_button(),
            on_click=_open,
            args=(first,),
            key="open_run",
        )
        st.download_button(
            "Export as a file",
            data=partial(pack_run, runs[first]),
            file_name=file_name(runs[first]),
            mime="application/zip",
            icon=":material/download:",
            on_click="ignore",
            disabled=len(picked) > 1,
            help="One file with everything measured; import it here or on another machine.",
            key="export_run",
        )
        if not settings().is_hosted:
            _rename(tools, runs, picked)
            st.button(
                "Delete" if len(own) < 2 else f"Delete {len(own)} runs",
                icon=":material/delete:",
                disabled=len(own) < len(picked),
                help="A bundled run stays." if len(own) < len(picked) else "It can be brought back for seven days.",
                on_click=_remove,
                args=(tools, {key: name_of(key, runs[key]) for key in own}),
                key="remove_run",
            )


def _rename(tools: Bench, runs: Mapping[str, Run], picked: list[str]) -> None:
    key = picked[0]
    with st.popover("Rename", icon=":material/edit:", disabled=len(picked) > 1 or key in EXAMPLES):
        st.text_input("Name", value=name_of(key, runs[key]), max_chars=MOST_CHARACTERS, key=f"name_of_{key}")
        st.button("Save the name", on_click=_save_name, args=(tools, key), key="save_name")


def _save_name(tools: Bench, key: str) -> None:
    state = s.session()
    try:
        tools.runs.rename(key, str(state.get(f"name_of_{key}", "")))
    except ShortvizError as error:
        visit.tell(state, str(error))


def _open(key: str) -> None:
    state = s.session()
    s.open_run(state, key)
    visit.leave_for(state, "pages/map.py")


def _remove(tools: Bench, names: Mapping[str, str]) -> None:
    state = s.session()
    removed: dict[str, str] = {}
    for key, name in names.items():
        try:
            removed[tools.runs.remove(key)] = name
        except ShortvizError as error:
            visit.tell(state, str(error))
        if s.run_key(state) == key:
            s.leave_run(state)
    state[s.REMOVED] = removed


def _undo(tools: Bench) -> None:
    removed = visit.removed_runs(s.session())
    if not removed:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f":material/delete: Deleted: {plain(', '.join(removed.values()))}.", width="content")
        st.button("Undo", icon=":material/undo:", on_click=_bring_back, args=(tools,), key="undo_remove")


def _bring_back(tools: Bench) -> None:
    state = s.session()
    for token in visit.removed_runs(state):
        try:
            tools.runs.restore(token)
        except ShortvizError as error:
            visit.tell(state, str(error))
    state[s.REMOVED] = {}


def _import(tools: Bench) -> None:
    with st.popover("Import", icon=":material/upload:"):
        st.file_uploader(
            "A run: a .zip from “Export as a file”, or a run.json",
            type=["zip", "json"],
            key="import_run",
            on_change=_imported,
            args=(tools,),
        )


def _imported(tools: Bench) -> None:
    """Keep what was uploaded, or say why it is no run; the page then shows it chosen."""
    state = s.session()
    upload = state.get("import_run")
    if upload is None:
        return
    try:
        key = tools.runs.add(unpack_run(upload.getvalue(), f"The file {upload.name[:80]}"))
    except ShortvizError as error:
        visit.tell(state, str(error))
        return
    visit.pick_runs(state, [key])
