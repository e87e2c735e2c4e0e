"""The triangular map of a criterion over all blocks, as a Plotly figure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from shortviz.analysis.compare import grid_difference, shift_words, start_shifts
from shortviz.analysis.planning import best_starts, cells
from shortviz.criteria.base import MEASURED, label, units
from shortviz.figures.cells import HOVER_BLOCK, grid_of, hover_rows, hover_template, rank_shares, row_ranks, value_range
from shortviz.figures.theme import CHOSEN, DIFFERENCE, NEEDED, lay_out
from shortviz.records.formatting import layer_words, with_error
from shortviz.records.json import Floats
from shortviz.records.measured import BlockDistances, Grid
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block

# A click on a Plotly heatmap never reaches Streamlit 1.67 (streamlit issue #8760, open), so the heatmaps carry colour
# only and an invisible scatter on top is what a person hits: hoverdistance -1 makes the nearest cell answer anywhere.

NEUTRAL = "#9e9e9e"
HEIGHT = 460
"""Of a map whose page gives it no height of its own."""
_TOP = 64
"""Pixels above the cells: the title, the bar beside the name of the axis, its numbers."""
_BAR = 90
"""Length of the bar in pixels."""


def _heatmap(layers: int, z: Floats, scale: Any, limits: tuple[float, float], ends: tuple[str, str] = ("", "")) -> Any:
    """Return the colours of all cells, `z[n-1][start]`, and with `ends` their bar; it never answers the mouse."""
    gap = 1 if layers <= 64 else 0
    cells = np.round(z, 5).astype(object)  # of objects: sent as lists, and Plotly does not check them cell by cell
    cells[np.isnan(z)] = None
    pad = _words_width(ends[0])
    bar = {"orientation": "h", "x": 0, "xanchor": "left", "xpad": pad, "y": 1, "yanchor": "bottom", "ypad": 0}
    bar |= {"lenmode": "pixels", "len": _BAR + 2 * pad, "thickness": 10, "showticklabels": False, "ticks": ""}
    return go.Heatmap(
        x=list(range(layers)),
        y=list(range(1, layers + 1)),
        z=cells,
        zmin=limits[0],
        zmax=limits[1],
        colorscale=scale,
        showscale=bool(ends[0]),
        colorbar=bar if ends[0] else None,
        hoverongaps=False,
        hoverinfo="skip",
        xgap=gap,
        ygap=gap,
    )


def _words_width(words: str) -> float:
    """Return about how many pixels words take in the chart's font, with a space after them."""
    return 6.6 * len(words) + 8


def _mark_size(layers: int, smallest: float, largest: float) -> float:
    """Return the size of a mark in pixels: as large as its cell allows, within limits."""
    return min(max(280.0 / layers, smallest), largest)


def _marks(places: Iterable[tuple[int, int]], name: str, marker: dict[str, Any]) -> go.Scatter:
    """Return marks on the cells (start, n); they never answer the mouse, nor fade when another cell is chosen."""
    starts, sizes = zip(*places, strict=True) if (places := list(places)) else ((), ())
    kept = {"marker": {"opacity": 1}}
    return go.Scatter(mode="markers", x=starts, y=sizes, name=name, marker=marker, unselected=kept, hoverinfo="skip")


def _hit_targets(layers: int, customdata: list[list[int | str]], hovertemplate: str) -> go.Scatter:
    """Return the invisible marks that a person hits; `customdata` is [[start, n, words ...], ...].

    It goes out as lists (a numeric array would come back from the browser as an object); wrapped in an array of objects
    Plotly does not check thousands of rows word by word. All points answer the mouse, and only one is drawn: a deep map
    has thousands, and drawing what nobody sees took most of the time of a click.
    """
    invisible = {"marker": {"opacity": 0}}
    wrapped = np.empty((len(customdata), len(customdata[0]) if customdata else 0), dtype=object)
    wrapped[:] = customdata
    size = _mark_size(layers, 4, 12)
    return go.Scatter(
        mode="markers",
        x=[row[0] for row in customdata],
        y=[row[1] for row in customdata],
        customdata=wrapped,
        hovertemplate=hovertemplate,
        marker={"symbol": "square", "size": size, "opacity": 0, "color": NEUTRAL, "maxdisplayed": 1},
        selected=invisible,
        unselected=invisible,
        name="blocks",
    )


def _ticks(first: int, last: int) -> list[int]:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if (last - first) / s <= 16)
    return sorted({first, *(v for v in range(first, last + 1) if v % step == 0)})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """What stands around the cells of a map."""

    title: str
    ends: tuple[str, str]
    """What the colours at the two ends of the bar mean."""
    key: tuple[str, ...]
    """What the marks mean, a line each."""
    sinks: tuple[int, ...] = ()


def _lay_out_map(figure: go.Figure, layers: int, frame: _Frame, *, dark: bool, selected: Block | None) -> go.Figure:
    """Give the figure the axes and the mouse of a map, say what colours and marks mean, and outline the chosen block.

    Small n stands at the top. What the marks mean is written into the empty half, because a legend would copy one
    cell's ink.
    """
    ticks = {"showgrid": False, "ticks": "", "title": {"standoff": 4}}
    lay_out(
        figure,
        dark,
        None,
        "n (layers removed)",
        height=HEIGHT,
        margin={"l": 48, "r": 8, "t": _TOP, "b": 8, "autoexpand": False},
        hoverdistance=-1,
        hoverlabel={"bgcolor": "#16212c", "bordercolor": "#16212c", "font": {"color": "#ffffff", "size": 12}},
        uirevision="map",
        xaxis={**ticks, "side": "top", "range": [-0.5, layers - 0.5], "tickvals": _ticks(0, layers - 1)},
        yaxis={**ticks, "range": [layers + 0.5, 0.5], "tickvals": _ticks(1, layers - 1)},
        showlegend=False,
    )
    above = {"x": 0, "y": 1, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    above |= {"showarrow": False, "align": "left", "borderpad": 0}
    figure.add_annotation(text=f"<b>{frame.title}</b>", **above, yshift=_TOP - 20)
    figure.add_annotation(text=frame.ends[0], **above, yshift=_TOP - 40)
    pad = _words_width(frame.ends[0])
    figure.add_annotation(text=frame.ends[1], **above, xshift=pad + _BAR + 8, yshift=_TOP - 40)
    figure.add_annotation(text="start layer", **above | {"x": 1, "xanchor": "right"}, yshift=_TOP - 40)
    figure.data[0].colorbar.ypad = _TOP - 37
    corner = {"x": 1, "y": 0, "xref": "paper", "yref": "paper", "xanchor": "right", "yanchor": "bottom"}
    figure.add_annotation(text="<br>".join(frame.key), align="left", showarrow=False, **corner)
    for sink in frame.sinks:
        _mark_sink(figure, layers, sink)
    if selected is not None:
        x, y = selected.start, selected.n
        for colour, width in (("#ffffff", 5), (CHOSEN, 2.5)):  # two tones: seen on any cell and on any page
            place = {"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
            figure.add_shape(type="rect", layer="above", line={"color": colour, "width": width}, **place)
    return figure


def _mark_sink(figure: go.Figure, layers: int, sink: int) -> None:
    """Draw a line around the blocks that remove the layer which writes the attention sink, with words at its foot."""
    bottom = layers - sink + 0.5
    steps = [f"L{sink - n + 0.5},{n - 0.5} L{sink - n + 0.5},{n + 0.5}" for n in range(1, sink + 2)]
    for colour, width in (("rgba(255,255,255,0.75)", 3.5), ("#16212c", 1.5)):
        line = {"color": colour, "width": width}
        figure.add_shape(type="line", x0=sink + 0.5, x1=sink + 0.5, y0=0.5, y1=bottom, line=line)
        figure.add_shape(type="path", path=f"M{sink + 0.5},0.5 {' '.join(steps)}", line=line)
    figure.add_annotation(
        x=sink + 0.5, y=bottom, xanchor="left", yanchor="top", showarrow=False, align="left", xshift=2,
        text=f"between the lines: removes<br>layer {sink}, the attention sink",
    )  # fmt: skip


Scale = Literal["rank", "value", "difference"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MapView:
    """How a person looks at a map."""

    scale: "Scale" = "rank"
    """`rank`: the place among the blocks of one size, from the first to the last. `value`: the criterion's own units,
    losses on a logarithmic scale, up to a quantile that the title names. `difference`: predicted rank minus measured
    rank, -1 to 1, on the ramp of differences."""
    selected: Block | None = None
    dark: bool = False
    limits: tuple[float, float] | None = None
    """Ends of the scale of values, where several maps share one; None is the map's own."""


def distance_map(distances: BlockDistances, criterion: str, model: ModelInfo, view: MapView) -> go.Figure:
    """Return the map: x the start layer, y the number of layers n downwards, colour the criterion.

    The traces are always the same, whatever has been measured so far; the last one is the hit target, with
    `customdata` rows [start, n, words ...] as Python lists (an array comes back from the browser as an object).
    Raises RunError where the criterion was not measured.
    """
    grid = grid_of(distances, criterion)
    layers = grid.num_layers
    low, high = view.limits or value_range(grid, criterion)
    colour, limits = _colour(grid, criterion, view.scale, (low, high))
    ramp = DIFFERENCE[::-1] if view.scale == "difference" else NEEDED
    ends = {
        "difference": ("worse than predicted", "better"),
        "rank": ("first to go", "last to go"),  # of its row: in the lowest rows even the first is needed
    }.get(view.scale, ("can go", "needed"))
    flat = np.where(np.isnan(colour) & ~np.isnan(grid.mean), 0.0, np.nan)
    shade = np.nan_to_num((colour - limits[0]) / (limits[1] - limits[0]), nan=0.3)
    ringed = {n: start for n, start in best_starts(grid, model).items() if n <= _most_ringed(layers)}
    figure = go.Figure(
        [
            _heatmap(layers, colour, ramp, limits, ends),
            _heatmap(layers, flat, [[0.0, NEUTRAL], [1.0, NEUTRAL]], (0.0, 1.0)),
            _best_rings({} if view.scale == "difference" else ringed, layers),
            _cannot_marks(model, layers, shade),
            _hit_targets(layers, hover_rows(distances, criterion, model), hover_template(criterion)),
        ]
    )
    key = ["□  chosen block"] if view.scale == "difference" else ["○  best start of its size", "□  chosen block"]
    frame = _Frame(
        title=_title(grid, criterion, view, (low, high)),
        ends=ends,
        key=(*key, *(["∕  cannot be exported"] if model.illegal else [])),
        sinks=distances.norms.sink_layers[:_MOST_SINKS],
    )
    return _lay_out_map(figure, layers, frame, dark=view.dark, selected=view.selected)


_MOST_SINKS = 2
"""Lines around sink layers that a map has room for; the tooltip names all."""


def _most_ringed(layers: int) -> int:
    """Return up to which n the best start is ringed: where people cut, and a row has enough cells to look for it."""
    return max(4, layers // 3)


def _colour(grid: Grid, criterion: str, scale: Scale, ends: tuple[float, float]) -> tuple[Floats, tuple[float, float]]:
    """Return what the colour of each cell stands for, and between which ends."""
    if scale == "rank":
        return rank_shares(grid), (0.0, 1.0)
    if scale == "difference":
        return grid.mean, (-1.0, 1.0)
    if criterion in MEASURED:
        return np.log10(np.maximum(grid.mean, ends[0])), (math.log10(ends[0]), math.log10(ends[1]))
    return grid.mean, ends


def _title(grid: Grid, criterion: str, view: MapView, ends: tuple[float, float]) -> str:
    name = escape(label(criterion))
    if view.scale == "rank":
        return f"{name}, rank in each row"
    if view.scale == "difference":
        return f"{name}: its rank beside the measured rank"
    beyond = int(np.sum(grid.mean > ends[1]))
    unit = f" {units(criterion)}" if units(criterion) else ""
    log = ", log scale" if criterion in MEASURED else ""
    above = f"; {beyond} block{'s' * (beyond != 1)} above" if beyond else ""
    return f"{name}, {ends[0]:g} to {ends[1]:g}{unit}{log}{above}"


def _best_rings(best: Mapping[int, int], layers: int) -> go.Scatter:
    rim = {"color": "#ffffff", "line": {"width": 1.5, "color": "#16212c"}}  # seen on both ends of the ramp
    marker = {"symbol": "circle", "size": _mark_size(layers, 3.5, 8), **rim}
    return _marks(((start, n) for n, start in best.items()), "best start of its size", marker)


def _cannot_marks(model: ModelInfo, layers: int, shade: Floats) -> go.Scatter:
    places = [(start, n) for start, n, _ in model.illegal if 0 < n < layers and start + n <= layers]
    ink = ["#16212c" if shade[n - 1, start] < 0.55 else "#ffffff" for start, n in places]
    marker = {"symbol": "line-ne-open", "size": _mark_size(layers, 4, 12), "color": ink}
    return _marks(places, "cannot be exported", {**marker, "line": {"width": 1.2, "color": ink}})


# The difference map: one criterion on two texts, block by block, on a diverging palette centred at 0. No streamlit.

_NAME_LENGTH = 20
"""Characters of a text's name that fit into the title."""


def difference_figure(
    one: Grid,
    other: Grid,
    model: ModelInfo,
    *,
    criterion: str,
    names: tuple[str, str] = ("A", "B"),
    per_n: bool = True,
    selected: Block | None = None,
    dark: bool = False,
) -> go.Figure:
    """Return the map of `other` minus `one`: x the start layer, y the number of layers n, red where `other` is higher.

    `names` are short words for the two texts. `per_n` compares rows rescaled to 0 (best) .. 1 (worst), else the
    criterion's own units. The last trace is the hit target, with `customdata` rows [start, n, words ...] as on the
    distance map, so that a click chooses the block; `selected` is outlined.
    Raises RunError where the grids are of models of different depth.
    """
    found = grid_difference(one, other, per_n=per_n)
    layers, limit = found.num_layers, _limit(found)
    short = [escape(name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…") for name in names]
    scale = "rows rescaled" if per_n else f"{units(criterion) or 'units of the criterion'}, ±{limit:.3g}"
    ends = (f"higher on {short[0]}", f"higher on {short[1]}")
    figure = go.Figure(
        [
            _heatmap(layers, found.mean, DIFFERENCE, (-limit, limit), ends),
            _best(one, model, "circle-open", names[0]),
            _best(other, model, "diamond-open", names[1]),
            _hit_targets(layers, _hover_rows(one, other, found), _hover(criterion, names, per_n=per_n)),
        ]
    )
    key = (f"○  best start on {short[0]}", f"◇  best start on {short[1]}", "□  chosen block")
    frame = _Frame(title=f"{escape(label(criterion))}, difference, {scale}", ends=ends, key=key)
    return _lay_out_map(figure, layers, frame, dark=dark, selected=selected)


def difference_alt(
    one: Grid, other: Grid, model: ModelInfo, *, criterion: str, names: tuple[str, str] = ("A", "B")
) -> str:
    """Return the finding of the difference map in two sentences."""
    return f"{names[1]} minus {names[0]} by {label(criterion)}. {shift_words(start_shifts(one, other, model))}"


def _limit(found: Grid) -> float:
    """Return the end of the colour scale, the same on both sides: the largest difference, or 1 where there is none."""
    known = np.abs(found.mean[np.isfinite(found.mean)])
    return float(known.max()) if known.size and known.max() > 0 else 1.0


def _best(grid: Grid, model: ModelInfo, symbol: str, name: str) -> go.Scatter:
    size = _mark_size(grid.num_layers, 4, 11) - 2 * (symbol != "circle-open")
    best = best_starts(grid, model).items()
    places = ((start, n) for n, start in best if n <= _most_ringed(grid.num_layers))
    return _marks(places, f"best start on {name}", {"symbol": symbol, "size": size, "color": "#000000"})


def _hover(criterion: str, names: tuple[str, str], *, per_n: bool) -> str:
    one, other = map(escape, names)
    scaled = " (rows rescaled to 0 .. 1)" if per_n else ""
    return (
        f"{HOVER_BLOCK}{escape(label(criterion))}<br>{one}: %{{customdata[3]}}<br>{other}: %{{customdata[4]}}<br>"
        f"difference %{{customdata[5]}}{scaled}<extra></extra>"
    )


def _hover_rows(one: Grid, other: Grid, found: Grid) -> list[list[int | str]]:
    ranks = [row_ranks(grid) for grid in (one, other)]
    rows: list[list[int | str]] = []
    for start, n in cells(found.num_layers):
        block = Block(start=start, n=n)
        blocks = found.num_layers - n + 1
        values = [
            f"{with_error(*grid.at(block))}, rank {rank[n][start]} of {blocks}"
            for grid, rank in zip((one, other), ranks, strict=True)
        ]
        rows.append([start, n, layer_words(start, n), *values, _signed(*found.at(block))])
    return rows


def _signed(value: float, error: float) -> str:
    if math.isnan(value):
        return "not known"
    certain = "" if math.isnan(error) else (", within two errors" if abs(value) <= 2 * error else "")
    return with_error(value, error, sign=True) + certain
