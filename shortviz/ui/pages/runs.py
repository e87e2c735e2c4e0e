"""The Runs page: everything measured before; open, name, compare, remove with undo, and take along as one file."""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from functools import partial

import plotly.graph_objects as go
import streamlit as st

from shortviz.criteria.base import MEASURED, label
from shortviz.errors import ShortvizError
from shortviz.figures import map as charts
from shortviz.figures.cells import InRun, block_in, in_common, map_alt, maps, shared_limits
from shortviz.records.formatting import counted, with_error
from shortviz.records.measured import BlockDistances
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.records.table import Table, left, right
from shortviz.runs.library import MOST_CHARACTERS, MOST_OF_A_NOTE, described, title
from shortviz.runs.run import EXAMPLES, file_name
from shortviz.runs.zip import pack_run, unpack_run
from shortviz.service import policy
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.ui.pages import inspector
from shortviz.ui.parts.notes import dark, main_button, plain
from shortviz.ui.parts.pointer import map_chart
from shortviz.ui.session import opened
from shortviz.ui.session import state as s
from shortviz.ui.session.service import bench
from shortviz.ui.session.shown import checked_block

# Several runs side by side on the Runs page: one scale, one chosen block, and the difference of two.

HEIGHT = 330
SHORT, SHORTEST = 40, 18
"""Characters of a run's name over its map where there are several beside it, and in a key."""


def draw_comparison(runs: Mapping[str, Run]) -> None:
    """Draw the maps of these runs, by name, the chosen block's numbers in each, and the difference of the first two."""
    state = s.session()
    found = {name: one for name, run in runs.items() if (one := maps(run)) is not None}
    names = in_common(list(found.values()))
    if len(found) < 2 or not names:
        st.info("These runs have nothing measured in common: measure the same criterion in both.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        criterion = st.selectbox("Compare by", names, format_func=label, key="compare_by", width=260)
        raw = (
            st.segmented_control("Scale", ("rank", "value"), default="rank", required=True, key="compare_scale")
            == "value"
        )
        layers = max(one.num_layers for one in found.values())
        chosen = s.block(state)
        if chosen is None or chosen.start >= layers or chosen.n > layers:
            s.set_block(state, Block(start=layers // 2, n=max(1, layers // 8)))
    inspector.block_inputs(layers)
    block = s.block(state)
    _maps(runs, found, criterion, raw=raw, block=block)
    if block is not None:
        _numbers(block_in(found, criterion, block), criterion, block)
    if len(found) > 2:
        st.caption("Choose two runs to see their difference, block by block.")
    else:
        _difference(runs, found, criterion, raw=raw, block=block)


def _maps(
    runs: Mapping[str, Run], found: Mapping[str, BlockDistances], criterion: str, *, raw: bool, block: Block | None
) -> None:
    limits = shared_limits(list(found.values()), criterion) if raw else None
    for place, (name, one) in zip(st.columns(len(found), gap="small"), found.items(), strict=True):
        model = runs[name].model
        look = charts.MapView(scale="value" if raw else "rank", dark=dark(), limits=limits)
        figure = charts.distance_map(one, criterion, model, look)
        with place:
            text = runs[name].text
            shown = name if len(found) < 3 or len(name) <= SHORT else f"{name[:SHORT]} …"
            st.markdown(f"**{plain(shown)}**  \n:small[{plain(text.source)}]")
            _chart(
                figure,
                f"compare_{list(found).index(name)}",
                model,
                _fitting(block, model),
                map_alt(one, criterion, model),
            )


def _chart(figure: go.Figure, key: str, model: ModelInfo, block: Block | None, alt: str) -> None:
    map_chart(figure, model.num_layers, block, _pointed, key=key, alt=alt, height=HEIGHT)


def _pointed(block: Block | None) -> None:
    if block is not None:
        s.set_block(s.session(), block)


def _fitting(block: Block | None, model: ModelInfo) -> Block | None:
    return checked_block(block.start, block.n, model.num_layers) if block is not None else None


def _numbers(rows: list[InRun], criterion: str, block: Block) -> None:
    unit = "nats" if criterion in MEASURED else ""
    heading = f"{label(criterion)}{f', {unit}' if unit else ''}"
    cells = [
        [plain(row.name), with_error(row.value, row.stderr), f"{row.rank} of {row.blocks}", str(row.best)]
        for row in rows
    ]
    table = Table(left("run") + right(heading, "rank", f"best start for n {block.n}"), cells)
    st.markdown(table.markdown() if rows else f"None of these runs has {block}.")


def _short(run: Run, name: str, other: Run) -> str:
    """Return a word or two for a run beside another one: what it was measured on, where that is what differs."""
    text = run.text.source.removeprefix("built-in ")
    return (text if run.text.source != other.text.source else name)[:SHORTEST]


def _difference(
    runs: Mapping[str, Run], found: Mapping[str, BlockDistances], criterion: str, *, raw: bool, block: Block | None
) -> None:
    (first, one), (second, other) = found.items()
    if one.num_layers != other.num_layers:
        st.caption(
            f"No difference map: {plain(first)} has {one.num_layers} layers, {plain(second)} {other.num_layers}."
        )
        return
    model = runs[first].model
    grids = one.criteria[criterion], other.criteria[criterion]
    short = _short(runs[first], first, runs[second]), _short(runs[second], second, runs[first])
    figure = charts.difference_figure(
        *grids,
        model,
        criterion=criterion,
        names=short,
        per_n=not raw,
        dark=dark(),
    )
    st.markdown(f"**{plain(second)} minus {plain(first)}**")
    alt = charts.difference_alt(*grids, model, criterion=criterion, names=short)
    _chart(figure, "compare_difference", model, _fitting(block, model), alt)
    st.caption(plain(alt))


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
    own = tools.own_runs()
    runs = tools.runs.listed(own)
    s.pick_runs(state, [key for key in s.picked_runs(state) if key in runs])
    st.subheader("Runs")
    _undo(tools)
    names = names_of(runs)
    _table(runs, names, own)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.multiselect(
            "Chosen runs",
            list(runs),
            format_func=names.__getitem__,
            key=s.PICKED,
            max_selections=MOST_COMPARED,
            placeholder="Choose one to open it, or several to compare them",
        )
        if policy.manages_runs(settings()):
            _import(tools)  # not beside the heading: the table's own toolbar would lie over it
    picked = [key for key in s.picked_runs(state) if key in runs]
    if picked:
        _buttons(tools, runs, names, picked)
    if len(picked) > 1:
        draw_comparison({names[key]: runs[key] for key in picked})


def names_of(runs: Mapping[str, Run]) -> dict[str, str]:
    """Return the names that a person knows runs by; those of one name are told apart by date, else by key."""
    names = {key: f"{title(run)} (bundled)" if key in EXAMPLES else title(run) for key, run in runs.items()}
    dates = {key: run.created[:16].replace("T", " ") or key for key, run in runs.items()}
    for more in (dates, {key: key for key in runs}):
        found = Counter(names.values())
        names = {key: f"{name} · {more[key]}" if found[name] > 1 else name for key, name in names.items()}
    return names


def _table(runs: Mapping[str, Run], names: Mapping[str, str], own: Collection[str]) -> None:
    keys = list(runs)
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:_KEY_LENGTH]
    # The selection is by row number: with other rows the table is a new one, or a click would mean another run.
    st.dataframe(
        [({"yours": key in own} if own else {}) | _row(names[key], run) for key, run in runs.items()],
        key=f"runs_table_{digest}",
        hide_index=True,
        on_select=partial(_chosen, f"runs_table_{digest}", keys),
        selection_mode="multi-row",
        row_height=_ROW_HEIGHT,
        column_config=_COLUMNS,
        alt=f"{len(runs)} runs: model, text, what was measured, when",
    )


def _row(name: str, run: Run) -> dict[str, object]:
    return {
        "name": name,
        "measured": _measured(run),
        "model": run.model.id,
        "layers": run.model.num_layers,
        "text": run.text.source,
        "rows": run.distances.samples if run.distances is not None else 0,
        "when (UTC)": run.created[:16].replace("T", " "),
        "tags": ", ".join(run.tags),
        "note": run.note,
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
    s.pick_runs(state, [keys[row] for row in rows if 0 <= row < len(keys)][:MOST_COMPARED])


def _buttons(tools: Service, runs: Mapping[str, Run], names: Mapping[str, str], picked: list[str]) -> None:
    first, own = picked[0], [key for key in picked if key not in EXAMPLES]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.button(
            plain(f"Open {names[first]}") if len(picked) > 1 else "Open on the map", icon=":material/grid_on:",
            type=main_button(), on_click=_open, args=(tools, first), key="open_run",
        )  # fmt: skip
        st.download_button(
            "Export as a file",
            data=partial(pack_run, runs[first]), file_name=file_name(runs[first]),
            mime="application/zip", icon=":material/download:",
            on_click="ignore", disabled=len(picked) > 1,
            help="One file holds one run: choose one alone." if len(picked) > 1
            else "One file with everything measured; import it here or on another machine.",
            key="export_run",
        )  # fmt: skip
        if policy.manages_runs(settings()):
            _describe(tools, runs, picked)
            st.button(
                "Delete" if len(own) < 2 else f"Delete {len(own)} runs", icon=":material/delete:",
                disabled=len(own) < len(picked),
                help="A bundled run stays: choose only your own."
                if len(own) < len(picked)
                else "It can be brought back for seven days.",
                on_click=_remove, args=(tools, {key: names[key] for key in own}), key="remove_run",
            )  # fmt: skip


def _describe(tools: Service, runs: Mapping[str, Run], picked: list[str]) -> None:
    key, run = picked[0], runs[picked[0]]
    why = "Choose one run alone." if len(picked) > 1 else "A bundled run stays as it is." if key in EXAMPLES else ""
    with st.popover("Name and note", icon=":material/edit:", disabled=bool(why), help=why or None):
        st.text_input("Name", value=title(run), max_chars=MOST_CHARACTERS, key=f"name_of_{key}")
        st.text_input("Tags, separated by commas", value=", ".join(run.tags), key=f"tags_of_{key}")
        st.text_area("Note", value=run.note, max_chars=MOST_OF_A_NOTE, key=f"note_of_{key}")
        st.button("Save", on_click=_save_description, args=(tools, key), key="save_name")


def _save_description(tools: Service, key: str) -> None:
    state = s.session()
    name, tags, note = (str(state.get(f"{what}_of_{key}", "")) for what in ("name", "tags", "note"))
    try:
        tools.runs.update(key, lambda run: run and described(run, name=name, tags=tags, note=note))
    except ShortvizError as error:
        s.tell(state, str(error))


def _open(tools: Service, key: str) -> None:
    state = s.session()
    opened.open_run(tools, state, key)
    s.leave_for(state, "Map")


def _remove(tools: Service, names: Mapping[str, str]) -> None:
    state = s.session()
    removed: dict[str, str] = {}
    for key, name in names.items():
        try:
            removed[tools.runs.remove(key)] = name
        except ShortvizError as error:
            s.tell(state, str(error))
        if s.run_key(state) == key:
            s.leave_run(state)
    state[s.REMOVED] = removed


def _undo(tools: Service) -> None:
    removed = s.removed_runs(s.session())
    if not removed:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f":material/delete: Deleted: {plain(', '.join(removed.values()))}.", width="content")
        st.button("Undo", icon=":material/undo:", on_click=_bring_back, args=(tools,), key="undo_remove")


def _bring_back(tools: Service) -> None:
    state = s.session()
    for token in s.removed_runs(state):
        try:
            tools.runs.restore(token)
        except ShortvizError as error:
            s.tell(state, str(error))
    state[s.REMOVED] = {}


def _import(tools: Service) -> None:
    with st.popover("Import", icon=":material/upload:"):
        st.file_uploader(
            "A run: a .zip from “Export as a file”, or a run.json",
            type=["zip", "json"],
            key="import_run",
            on_change=_imported,
            args=(tools,),
        )


def _imported(tools: Service) -> None:
    """Keep what was uploaded, or say why it is no run; the page then shows it chosen."""
    state = s.session()
    upload = state.get("import_run")
    if upload is None:
        return
    try:
        key, new = tools.runs.add(unpack_run(upload.getvalue(), f"The file {upload.name[:80]}"))
    except ShortvizError as error:
        s.tell(state, str(error))
        return
    if not new:
        st.toast("This run is already here; it is chosen.", icon=":material/info:")
    s.pick_runs(state, [key])
