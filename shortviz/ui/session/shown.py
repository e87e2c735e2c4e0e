"""What a session looks at now: which run, which model, and whether the model is in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from shortviz.analysis.planning import best_blocks
from shortviz.errors import PlanError, ShortvizError
from shortviz.figures import map as charts
from shortviz.records.measured import BlockDistances, BlockLosses
from shortviz.records.model import ModelInfo, ModelRef
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.runs.run import EXAMPLES
from shortviz.service.queue import JobState
from shortviz.service.service import EXAMPLE, Service, run_key
from shortviz.ui.session import state as s

if TYPE_CHECKING:
    from shortviz.model.handle import ModelHandle


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shown:
    """One look at the bench through a session's eyes."""

    ref: ModelRef | None
    """The model of this session; None before one was chosen."""
    handle: "ModelHandle | None"
    """The live model where it is loaded and belongs to what is shown."""
    key: str | None
    """Run that measured numbers are kept with."""
    run: Run | None
    model: ModelInfo | None
    """None where a model was chosen that was neither loaded nor measured before."""
    error: str = ""
    """Why the run could not be read."""

    @property
    def bundled(self) -> bool:
        """Whether this is the run that comes with shortviz."""
        return self.key in EXAMPLES

    @property
    def distances(self) -> BlockDistances | None:
        """The finished or stopped map, where there is one."""
        return self.run.distances if self.run is not None else None


def look(bench: Service, state: s.State) -> Shown:
    """Return what this session looks at."""
    ref = s.ref(state)
    handle = bench.models.get(ref) if ref is not None else None
    try:
        key, run = _find_run(bench, state, ref, handle)
        error = ""
    except ShortvizError as problem:
        key, run, error = None, None, str(problem)
    if ref is not None and run is not None and s.run_key(state) is not None and run.model.id != ref.id:
        ref, handle = None, None  # a run of another model was opened
    model = run.model if run is not None else (handle.info if handle is not None else None)
    if handle is not None and model is not None and not _same_model(handle.info, model):
        handle = None
    return Shown(ref=ref, handle=handle, key=key, run=run, model=model, error=error)


def _find_run(
    bench: Service, state: s.State, ref: ModelRef | None, handle: "ModelHandle | None"
) -> tuple[str | None, Run | None]:
    opened = s.run_key(state)
    if opened is not None:
        return opened, bench.runs.get(opened)
    if ref is None:
        return EXAMPLE, bench.runs.get(EXAMPLE)
    own = run_key(ref, s.calibration(state))
    found = bench.runs.get(own)
    if found is not None:
        return own, found
    example = bench.runs.get(EXAMPLE)
    if example is None or example.model.id != ref.id:
        return own, None
    if handle is None or _same_model(handle.info, example.model):
        return EXAMPLE, example
    return own, None


def _same_model(one: ModelInfo, other: ModelInfo) -> bool:
    return (one.id, one.num_layers, one.parameters) == (other.id, other.num_layers, other.parameters)


def ref_of(shown: Shown) -> ModelRef | None:
    """Return what to load in order to measure on what is shown."""
    if shown.ref is not None:
        return shown.ref
    if shown.model is None:
        return None
    return ModelRef(id=shown.model.id, revision=shown.model.revision)


def live_losses(shown: Shown, job: JobState | None) -> BlockLosses | None:
    """Return the measured map: the newest partial one while it is being measured, else the saved one."""
    if job is not None and job.live and isinstance(job.partial, BlockLosses):
        return job.partial
    return shown.run.losses if shown.run is not None else None


def live_map(shown: Shown, job: JobState | None) -> BlockDistances | None:
    """Return the map to draw: the newest partial one while a measurement of this run goes on, else the saved one."""
    if job is not None and job.live and isinstance(job.partial, BlockDistances):
        return job.partial
    return shown.distances


def measure_job(bench: Service, state: s.State, shown: Shown, kind: str = "measure") -> JobState | None:
    """Return the newest measurement of this session, where it is of the model that is shown.

    `measure` is the distance map, `losses` the measured map.
    """
    job_id = s.job(state, kind)
    context = bench.context(job_id or "")
    if context is None or getattr(context.request, "model", None) != shown.ref:
        return None
    return bench.state(job_id)


def first_block(distances: BlockDistances, model: ModelInfo) -> Block:
    """Return the block that is chosen before a person chooses one: the best of an eighth of the layers.

    A block that cannot be exported is never it, unless there is no other.
    """
    name = "angular_last" if "angular_last" in distances.criteria else next(iter(distances.criteria))
    blocks = best_blocks(distances, name, model)
    n = max(1, distances.num_layers // 8)
    return min(blocks, key=lambda b: abs(b.n - n), default=Block(start=0, n=1))


def settle_block(state: s.State, distances: BlockDistances | None, model: ModelInfo) -> None:
    """Choose a first block where none is chosen, or one that this model could not have."""
    chosen = s.block(state)
    if chosen is not None and within(chosen, model):
        return
    s.set_block(state, first_block(distances, model) if distances is not None else Block(start=0, n=1))


def within(block: Block, model: ModelInfo) -> bool:
    """Return whether both numbers of a block are ones that some block of the model has."""
    return 0 <= block.start < model.num_layers and 1 <= block.n <= model.num_layers


# What happens when a person chooses a block, in whichever picture or table.


def choose(block: Block | None) -> None:
    """Choose a block because a person did; its measurement is wanted."""
    if block is not None:
        s.set_block(s.session(), block)
        s.want(s.session(), "numbers")
        st.rerun()


FONT = '"Source Sans", "Source Sans Pro", sans-serif'
"""Of charts, that of the page around them."""


# What the browser says was chosen, checked: a block of the model, or nothing.


def parse_selection(event: Any, num_layers: int) -> Block | None:
    """Return the block of a click on the map; None where nothing was clicked or the browser sent something else.

    An empty event is not "choose nothing": a second click on a cell, a double click and a redraw all send one.
    """
    points = _field(_field(event, "selection"), "points")
    if not _is_list(points) or not points:
        return None
    custom = _field(points[0], "customdata")
    if not _is_list(custom) or len(custom) < 2:
        return None
    return checked_block(custom[0], custom[1], num_layers)


def parse_cell(event: Any, num_layers: int, row_n: Sequence[int]) -> Block | None:
    """Return the block of a cell chosen in the table: row position `row_n[i]` is n, the column's name is the start."""
    cells = _field(_field(event, "selection"), "cells")
    if not _is_list(cells) or not cells or not _is_list(cells[0]) or len(cells[0]) != 2:
        return None
    row, column = cells[0]
    if not isinstance(row, int) or not 0 <= row < len(row_n):
        return None
    return checked_block(str(column), row_n[row], num_layers)


def parse_row(event: Any, blocks: Sequence[Block]) -> Block | None:
    """Return the block of a row chosen in the table of best blocks."""
    rows = _field(_field(event, "selection"), "rows")
    if not _is_list(rows) or not rows or not isinstance(rows[0], int) or not 0 <= rows[0] < len(blocks):
        return None
    return blocks[rows[0]]


def checked_block(start: Any, n: Any, num_layers: int) -> Block | None:
    """Return the block where both are whole numbers inside the model, else None."""
    try:
        return Block(start=int(start), n=int(n)).check(num_layers)
    except (TypeError, ValueError, PlanError):
        return None


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


VIEWS = ("Map", "Table", "Best per n", "Agreement", "Curve", "Texts")


def criterion_of(state: s.State, distances: BlockDistances) -> str:
    """Return the criterion to draw: the chosen one where it was measured."""
    chosen = str(state.get(s.CRITERION, ""))
    return chosen if chosen in distances.criteria else next(iter(distances.criteria))


def drawn_criterion(state: s.State, which: str, criterion: str, drawn: BlockDistances) -> str:
    """Return what the drawn map shows: the criterion, or the chosen measured loss."""
    if which != "measured":
        return criterion
    metric = str(state.get(s.METRIC))
    return metric if metric in drawn.criteria else next(iter(drawn.criteria))


def map_look(state: s.State, which: str, chosen: Block | None, *, dark: bool) -> charts.MapView:
    """Return how this session looks at a map."""
    scale: charts.Scale = "raw" if state.get(s.SCALE) == "raw" else "per_n"
    return charts.MapView(
        scale="difference" if which == "difference" else scale,
        palette="viridis" if state.get(s.PALETTE) == "viridis" else "cividis",
        selected=chosen,
        dark=dark,
    )
