"""Several runs side by side on the Runs page: one scale, one chosen block, and the difference of two."""

from collections.abc import Mapping
from functools import partial

import plotly.graph_objects as go
import streamlit as st

from shortviz import charts
from shortviz.errors import PlanError
from shortviz.records import Block, BlockDistances, ModelInfo, Run
from shortviz.run_compare import InRun, block_in, in_common, is_measured, maps, shared_limits
from shortviz.table import Table, left, right
from shortviz.ui import inspector
from shortviz.ui import state as s
from shortviz.ui.map_view import FONT
from shortviz.ui.selection import parse_selection
from shortviz.ui.words import plain
from shortviz.words import with_error

HEIGHT = 330
_WIDTH, _BAR = 1100, 76
"""Pixels of a window of 1280 that the maps share, and that the one bar of colours takes beside the last."""
SHORT, SHORTEST = 40, 18
"""Characters of a run's name over its map where there are several beside it, and in a key."""


def draw(runs: Mapping[str, Run]) -> None:
    """Draw the maps of these runs, by name, the chosen block's numbers in each, and the difference of the first two."""
    state = s.session()
    found = {name: one for name, run in runs.items() if (one := maps(run)) is not None}
    names = in_common(list(found.values()))
    if len(found) < 2 or not names:
        st.info("These runs have nothing measured in common: measure the same criterion in both.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        criterion = st.selectbox("Compare by", names, format_func=charts.label, key="compare_by", width=260)
        raw = (
            st.segmented_control("Scale", ("per n", "raw"), default="per n", required=True, key="compare_scale")
            == "raw"
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
    each = (_WIDTH - _BAR) / len(found)
    columns = st.columns([*[each] * (len(found) - 1), each + _BAR], gap="small")
    for place, (name, one) in zip(columns, found.items(), strict=True):
        model = runs[name].model
        view = charts.MapView(
            scale="raw" if raw else "per_n",
            selected=_fitting(block, model),
            dark=st.context.theme.type == "dark",
            limits=limits,
        )
        figure = charts.distance_map(one, criterion, model, view)
        figure.update_layout(height=max(HEIGHT, 4 * one.num_layers), font={"family": FONT, "size": 11})
        if place is not columns[-1]:  # one scale for all has one bar
            figure.update_traces(showscale=False, selector={"type": "heatmap"})
            figure.update_layout(margin={"r": 12})
        if len(found) > 2:
            figure.update_layout(annotations=[])
        with place:
            text = runs[name].text
            shown = name if len(found) < 3 or len(name) <= SHORT else f"{name[:SHORT]} …"
            st.markdown(f"**{plain(shown)}**  \n:small[{plain(text.source)}]")
            _chart(figure, f"compare_{list(found).index(name)}", model, charts.map_alt(one, criterion, model))


def _chart(figure: go.Figure, key: str, model: ModelInfo, alt: str) -> None:
    st.plotly_chart(
        figure,
        theme=None,
        key=key,
        on_select=partial(_clicked, key, model.num_layers),
        selection_mode="points",
        config={"displaylogo": False},
        alt=alt,
    )


def _clicked(key: str, num_layers: int) -> None:
    block = parse_selection(s.session().get(key), num_layers)
    if block is not None:
        s.set_block(s.session(), block)


def _fitting(block: Block | None, model: ModelInfo) -> Block | None:
    try:
        return block.check(model.num_layers) if block is not None else None
    except PlanError:
        return None


def _numbers(rows: list[InRun], criterion: str, block: Block) -> None:
    unit = "nats" if is_measured(criterion) else ""
    heading = f"{charts.label(criterion)}{f', {unit}' if unit else ''}"
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
        selected=_fitting(block, model),
        dark=st.context.theme.type == "dark",
    )
    figure.update_layout(font={"family": FONT, "size": 11})
    st.markdown(f"**{plain(second)} minus {plain(first)}**")
    alt = charts.difference_alt(*grids, model, criterion=criterion, names=short)
    _chart(figure, "compare_difference", model, alt)
    st.caption(plain(alt))
