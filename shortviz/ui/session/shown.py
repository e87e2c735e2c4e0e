"""What a session looks at now: which run, which model, and whether the model is in memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import streamlit as st

from shortviz import criteria
from shortviz.analysis.advice import advise
from shortviz.analysis.planning import best_blocks
from shortviz.criteria.base import MEASURED
from shortviz.errors import PlanError, ShortvizError
from shortviz.figures import map as charts
from shortviz.figures.cells import as_map
from shortviz.figures.losses import difference_grid
from shortviz.figures.theme import PAGE_FONT
from shortviz.records.advice import Budget
from shortviz.records.measured import BlockDistances, BlockLosses
from shortviz.records.model import ModelInfo, ModelRef
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.runs.run import EXAMPLES
from shortviz.service.queue import JobState
from shortviz.service.service import EXAMPLE, Service, run_key
from shortviz.ui.session import opened
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
    other: ModelInfo | None = None
    """What is loaded, where that is another model than the one of the run."""
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
    model = run.model if run is not None else (handle.info if handle is not None else None)
    other = None
    if handle is not None and model is not None and not _same_model(handle.info, model, strict=key not in EXAMPLES):
        other, handle = handle.info, None
    if ref is not None and run is not None and s.run_key(state) is not None and run.model.id != ref.id:
        ref = None  # a run of another model was opened
    return Shown(ref=ref, handle=handle, key=key, run=run, model=model, other=other, error=error)


def _find_run(
    bench: Service, state: s.State, ref: ModelRef | None, handle: "ModelHandle | None"
) -> tuple[str | None, Run | None]:
    opened_key = s.run_key(state)
    if opened_key is not None:
        return opened_key, bench.runs.get(opened_key)
    if ref is None:
        return EXAMPLE, bench.runs.get(EXAMPLE)
    text = s.calibration(state)
    own = run_key(ref, text)
    found = bench.runs.get(own)
    if found is not None:
        return own, found
    for key in EXAMPLES:
        example = bench.runs.get(key)
        if example is None or example.model.id != ref.id or not opened.is_of(text, example.text, in_rows=True):
            continue
        if handle is None or _same_model(handle.info, example.model):
            return key, example
    return own, None


def _same_model(one: ModelInfo, other: ModelInfo, *, strict: bool = False) -> bool:
    """Return whether two models are one: `strict` where results are kept, which a dtype or revision tells apart."""
    same = (one.id, one.num_layers, one.parameters) == (other.id, other.num_layers, other.parameters)
    return same and (not strict or (one.dtype, one.revision) == (other.dtype, other.revision))


def ref_of(shown: Shown) -> ModelRef | None:
    """Return what to load in order to measure on what is shown."""
    if shown.ref is not None and shown.other is None:
        return shown.ref
    if shown.model is None:
        return None
    found = ModelRef(id=shown.model.id, revision=shown.model.revision)
    if shown.ref is None or shown.model.dtype not in ("float32", "bfloat16", "float16"):
        return found
    return replace(found, dtype=shown.model.dtype, device=shown.ref.device)  # what was chosen gave another model


def start_of(shown: Shown) -> str | None:
    """Return what a new run begins as: what is shown, where the loaded model's results may stand beside it."""
    alike = shown.run is None or shown.handle is None or shown.handle.info.dtype == shown.run.model.dtype
    return shown.key if alike else None


def living(bench: Service, state: s.State, shown: Shown) -> Shown:
    """Return what is shown with the newest partial maps of what is being measured, in place of those of the run.

    Both halves of a page draw from it, so that neither shows another measurement's numbers: before the first partial
    map there is none. Where the work goes into another run than the one that is open, what that one says of its own
    text is left out, and is there again after it.
    """
    run = shown.run
    for kind in ("measure", "losses"):
        job = measure_job(bench, state, shown, kind)
        # What others go on with is not in the run yet; who left it sees what there is.
        about = bench.context(job.id) if job is not None and (job.live or job.stopping) else None
        if job is None or about is None:
            continue
        new, text = job.partial, getattr(about.request, "text", None)
        if about.run_key != shown.key:
            run = replace(run, losses=None, evaluations=(), ledgers=()) if kind == "losses" and run else None
        elif run is not None and kind == "measure":
            run = replace(run, distances=None)
        elif run is not None:
            same = tuple(e for e in run.evaluations if text and opened.is_of(text, e.text, in_rows=False))
            run = replace(run, losses=None, evaluations=same)
        if isinstance(new, BlockDistances) and shown.model is not None:
            run = replace(run, distances=new) if run else Run(model=shown.model, text=new.text, distances=new)
        if isinstance(new, BlockLosses) and shown.model is not None:
            run = run or Run(model=shown.model, text=new.text)
            same = tuple(one for one in run.evaluations if one.text.fingerprint == new.text.fingerprint)
            run = replace(run, losses=new, evaluations=same)
    return replace(shown, run=run)


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
    """Return the block that is chosen first where no advice names one: the best of an eighth of the layers.

    A block that cannot be exported is never it, unless there is no other.
    """
    name = "angular_last" if "angular_last" in distances.criteria else next(iter(distances.criteria))
    blocks = best_blocks(distances, name, model)
    n = max(1, distances.num_layers // 8)
    return min(blocks, key=lambda b: abs(b.n - n), default=Block(start=0, n=1))


def settle_block(state: s.State, run: Run | None, model: ModelInfo) -> None:
    """Choose a first block where none is chosen, or one that this model could not have; that measures nothing.

    It is the one that the answer on the Map page speaks of, on whichever page a visit begins.
    """
    chosen = s.block(state)
    if chosen is not None and within(chosen, model):
        return
    removed = advised(state, run) if run is not None else ()
    block = Block(start=removed[0], n=len(removed)) if removed else None
    if block is None or block.layers != removed:
        known = run.distances if run is not None else None
        block = first_block(known, model) if known is not None else Block(start=0, n=1)
    s.set_block(state, block)


def advised(state: s.State, run: Run) -> tuple[int, ...]:
    """Return the layers that go by the answer's slider; () where nothing that was measured fits."""
    try:
        return advise(run, budget_of(state, run), bare=True).plan.removed
    except ShortvizError:
        return ()


def budget_of(state: s.State, run: Run) -> Budget:
    """Return what the answer's slider allows, or its usual place before a person moved it."""
    kind = budget_kind(state)
    value = state.get(f"{s.LIMIT}_{kind}")
    if kind == "max_increase":
        return Budget(max_increase=math.log(value or 1.5))
    number = min(value or usual_limit(run.model, kind), most_limit(run.model, kind))
    return Budget(layers=number) if kind == "layers" else Budget(bytes=int(run.model.bytes * (1 - number / 100)))


BUDGETS = {"layers": "layers", "bytes": "percent", "max_increase": "up to a loss"}


def budget_kind(state: s.State) -> str:
    """Return what the answer's slider counts."""
    found = state.get(s.BUDGET)
    return found if found in BUDGETS else "layers"


def most_limit(model: ModelInfo, kind: str) -> int:
    """Return the largest number on the slider: all layers but one, or the percent of the weights that they take."""
    if kind == "layers":
        return max(2, model.num_layers - 1)
    return max(2, int(100 * (sum(model.layer_bytes) - min(model.layer_bytes)) / model.bytes))


def usual_limit(model: ModelInfo, kind: str) -> int:
    """Return where the slider stands before a person moves it."""
    return max(1, most_limit(model, kind) // 7)


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


FONT = PAGE_FONT
_Cut = TypeVar("_Cut")


# What the browser says was chosen, checked: a block of the model, or nothing.


def parse_selection(event: Any, num_layers: int) -> Block | None:
    """Return the block of a click on the map; None where nothing was clicked or the browser sent something else.

    An empty event is not "choose nothing": a second click on a cell, a double click and a redraw all send one.
    """
    custom = _field(first_chosen(event, "points"), "customdata")
    if not _is_list(custom) or len(custom) < 2:
        return None
    return checked_block(custom[0], custom[1], num_layers)


def parse_cell(event: Any, num_layers: int, row_n: Sequence[int]) -> Block | None:
    """Return the block of a cell chosen in the table: row position `row_n[i]` is n, the column's name is the start."""
    cell = first_chosen(event, "cells")
    if not _is_list(cell) or len(cell) != 2:
        return None
    row, column = cell
    if not isinstance(row, int) or not 0 <= row < len(row_n):
        return None
    return checked_block(str(column), row_n[row], num_layers)


def parse_row(event: Any, blocks: Sequence[_Cut]) -> _Cut | None:
    """Return the block, or the cut, of a row chosen in a table of them."""
    row = first_chosen(event, "rows")
    return blocks[row] if isinstance(row, int) and 0 <= row < len(blocks) else None


def checked_block(start: Any, n: Any, num_layers: int) -> Block | None:
    """Return the block where both are whole numbers inside the model, else None."""
    try:
        return Block(start=int(start), n=int(n)).check(num_layers)
    except (TypeError, ValueError, PlanError):
        return None


def first_chosen(event: Any, name: str) -> Any:
    """Return the first of an event's points, cells or rows; None where none was chosen, or something else was sent."""
    found = _field(_field(event, "selection"), name)
    return found[0] if _is_list(found) and found else None


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


VIEWS = ("Map", "Table", "Best per n", "Agreement", "Curve", "Texts")
SCALES = {"rank": "rank", "value": "value", "difference": "vs measured"}


def colours(run: Run | None) -> tuple[str, ...]:
    """Return what a map of this run can be coloured by, the usual one first: the measured loss where there is one."""
    measured = tuple(MEASURED)
    predicted = tuple(run.distances.criteria) if run is not None and run.distances is not None else criteria.names()
    return (*measured, *predicted) if run is not None and run.losses is not None else (*predicted, *measured)


def colour_of(state: s.State, run: Run | None) -> str:
    """Return what colours the map: what was chosen where this run can have it, else the usual one."""
    chosen, offered = state.get(s.CRITERION), colours(run)
    return chosen if chosen in offered else offered[0]


def scale_of(state: s.State, run: Run | None) -> charts.Scale:
    """Return the scale of the colours; a measured loss has no difference from itself."""
    chosen: charts.Scale = state.get(s.SCALE, "rank")
    usual = chosen not in SCALES or (chosen == "difference" and colour_of(state, run) in MEASURED)
    return "rank" if usual else chosen


def job_of(state: s.State, run: Run | None) -> str:
    """Return the kind of job that fills in the map as it is coloured: `measure` distances, or `losses`."""
    measured = colour_of(state, run) in MEASURED or scale_of(state, run) == "difference"
    return "losses" if measured else "measure"


def criterion_of(state: s.State, distances: BlockDistances) -> str:
    """Return the criterion that speaks for the distances: the chosen one where it was measured."""
    chosen = str(state.get(s.CRITERION, ""))
    return chosen if chosen in distances.criteria else next(iter(distances.criteria))


def drawn(state: s.State, run: Run | None) -> tuple[BlockDistances, str] | None:
    """Return what the map draws, in the shape of a distance map, and its criterion; None where it is not measured."""
    colour, distances, losses = colour_of(state, run), *((run.distances, run.losses) if run else (None, None))
    if scale_of(state, run) == "difference":
        grid = distances.criteria.get(colour) if distances is not None else None
        if grid is None or losses is None:
            return None
        found = {colour: difference_grid(grid, losses.increase)}
        return replace(as_map(losses, distances), criteria=found), colour
    if colour in MEASURED:
        return (as_map(losses, distances), colour) if losses is not None else None
    return (distances, colour) if distances is not None else None
