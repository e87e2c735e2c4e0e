"""Search without the whole map: the best start of each n by successive elimination, and greedy removal of layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shortviz.analysis.curve import uncut
from shortviz.errors import PlanError, Stopped
from shortviz.measure.loss_map import Engine, open_engine
from shortviz.measure.losses import check_windows
from shortviz.model.delta import checkpoint_key, load_checkpoint, save_checkpoint
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.json import Floats, Many, Number
from shortviz.records.measured import CurveLine, CurvePoint, GreedyRemoval
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.sums import mean_and_stderr
from shortviz.records.text import TextInfo, WindowSet

Z = 3.0
"""A start is dropped once the mean of its paired differences to the leader exceeds this many standard errors."""
CERTAIN_FROM = 2
"""Windows before anything is dropped: one gives no error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowBest:
    """What the search found for blocks of n layers."""

    n: int
    start: int
    """The leader: lowest mean increase among the starts that were never dropped."""
    tied: Many[int]
    """Starts that the text could not tell from the leader, the leader included."""
    increase: float
    """NLL(pruned) - NLL(uncut) of the leader, in nats."""
    stderr: Number
    """Its standard error over windows; NaN with one window."""
    windows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The best start of every n up to a limit."""

    rows: Many[RowBest]
    text: TextInfo
    cells_measured: int
    """Blocks times windows that were run."""
    cells_exhaustive: int
    """What measuring every block on every window would have run."""


def check_max_n(num_layers: int, max_n: int) -> None:
    """Raise PlanError for a largest n to search outside 1 .. L-1."""
    if not 1 <= max_n <= num_layers - 1:
        raise PlanError(f"The largest n to search is {max_n}; it must be 1 to {num_layers - 1}.")


class SuccessiveElimination:
    """The starts of each n = 1 .. max_n that may still be the best; blocks that the config cannot express take no part.

    Window by window all of them are measured; then a start is dropped once it is worse than the leader of its row by
    more than `z` standard errors of their paired differences (the same windows stand behind both). The variance of a
    difference is taken as the larger of its own and the row's median: with two windows its own alone would be a
    lottery. A row with one start left is done.
    """

    def __init__(self, model: ModelInfo, max_n: int | None = None, *, z: float = Z) -> None:
        """Let all legal blocks start; raises PlanError for a max_n outside 1 .. L-1."""
        layers = model.num_layers
        limit = layers - 1 if max_n is None else max_n
        check_max_n(layers, limit)
        rows = {n: [Block(start=s, n=n) for s in range(layers - n + 1)] for n in range(1, limit + 1)}
        self.remaining = {n: [b for b in row if model.illegal_reason(b) is None] for n, row in rows.items()}
        self.samples: dict[Block, list[float]] = {block: [] for row in self.remaining.values() for block in row}
        self.windows = 0
        self.z = z

    def wanted(self) -> list[Block]:
        """Return the blocks to measure on the next window; none when every row is decided."""
        early = self.windows < CERTAIN_FROM
        return [block for row in self.remaining.values() if early or len(row) > 1 for block in row]

    def add(self, blocks: Sequence[Block], increases: Floats) -> None:
        """Add one window's increases in NLL of the wanted blocks, and drop the starts that are certainly worse."""
        for block, increase in zip(blocks, increases, strict=True):
            self.samples[block].append(float(increase))
        self.windows += 1
        self.remaining = {n: self._not_eliminated(row) for n, row in self.remaining.items()}

    @property
    def left(self) -> int:
        """Blocks not eliminated yet."""
        return sum(len(row) for row in self.remaining.values())

    def result(self, text: TextInfo, windows: int) -> SearchResult:
        """Return the leaders so far; `windows` is how many there are in all."""
        return SearchResult(
            rows=tuple(self._best(row) for row in self.remaining.values() if row),
            text=text,
            cells_measured=sum(len(values) for values in self.samples.values()),
            cells_exhaustive=len(self.samples) * windows,
        )

    def _not_eliminated(self, row: Sequence[Block]) -> list[Block]:
        """Return the blocks of a row that are not yet worse than its leader for certain; blocks that give NaN go."""
        finite = [block for block in row if np.isfinite(self.samples[block]).all()]
        if len(finite) < 2 or len(self.samples[finite[0]]) < CERTAIN_FROM:
            return finite
        values: Floats = np.array([self.samples[block] for block in finite])
        differences = values - values[int(values.mean(1).argmin())]
        own = differences.var(1, ddof=1)
        typical = np.median(own[own > 0]) if (own > 0).any() else 0.0
        margin = self.z * np.sqrt(np.maximum(own, typical) / values.shape[1])
        return [block for block, ahead in zip(finite, differences.mean(1) <= margin, strict=True) if ahead]

    def _best(self, row: Sequence[Block]) -> RowBest:
        means = [float(np.mean(self.samples[block])) for block in row]
        leader = row[int(np.argmin(means))]
        values = self.samples[leader]
        return RowBest(
            n=leader.n,
            start=leader.start,
            tied=tuple(block.start for block in row),
            increase=min(means),
            stderr=mean_and_stderr(values)[1],
            windows=len(values),
        )


# Greedy scattered removal: take out the least harmful layer, measure again, repeat (as SLEB, arXiv 2402.09025).


def greedy_removal(
    handle: ModelHandle, windows: WindowSet, *, max_removed: int | None = None, checkpoint: Path | None = None,
    watch: Watch = NO_WATCH,
) -> GreedyRemoval:  # fmt: skip
    """Return the loss after each step of greedy removal, n = 0 .. max_removed (L-1 if None).

    At each step the loss without every layer still there is measured on all windows (a row n = 1 of the measured map of
    the model pruned so far), and the layer whose removal costs least goes. Layers that the config cannot do without
    are passed over; where none is left to remove, or on `stop`, the line ends. Partial results come by
    `Progress.snapshot`. Whether replay is exact is checked once, on the uncut model. With `checkpoint` every step is
    kept there, and the same model on the same windows goes on from it, however many layers are to go.
    Raises PlanError for a max_removed outside 1 .. L-1, RunError for a checkpoint of other work, Stopped
    before the first step, TextError and NumericsError as `evaluate` does.
    """
    layers = handle.info.num_layers
    limit = layers - 1 if max_removed is None else max_removed
    check_removed(layers, limit)
    check_windows(handle, windows)
    key = checkpoint_key("greedy", handle, windows.info.fingerprint)
    saved = load_checkpoint(checkpoint, key) if checkpoint is not None else None
    base, steps = (saved["base"], saved["steps"].tolist()) if saved is not None else (np.zeros(0), [])
    removed: tuple[int, ...] = ()
    points: list[CurvePoint] = [uncut(float(base.mean()))] if steps else []
    for layer, loss, error in steps[:limit]:
        removed = tuple(sorted((*removed, int(layer))))
        points.append(CurvePoint(n=len(removed), removed=removed, nll=loss, stderr=error))
    engine = open_engine(handle, windows.tokens[0]) if steps else None

    def partial() -> GreedyRemoval:
        line = CurveLine(strategy="greedy", label="greedy scattered layers", points=tuple(points))
        return GreedyRemoval(line=line, text=windows.info, complete=len(points) == limit + 1)

    for step in range(len(removed) + 1, limit + 1):
        plan = PrunePlan(num_layers=layers, removed=removed)
        pruned = prune(handle, plan)
        engine = open_engine(pruned, windows.tokens[0], like=engine)
        try:
            before, nll = single_layer_losses(pruned, windows, watch, engine=engine)
        except Stopped:
            break
        if not points:
            base = before
            points.append(uncut(float(base.mean())))
        means = nll.mean(0)
        if np.isnan(means).all():
            break
        gone = int(np.nanargmin(means))
        removed = tuple(sorted((*removed, plan.kept[gone])))
        error = mean_and_stderr(nll[:, gone] - base)[1]
        points.append(CurvePoint(n=len(removed), removed=removed, nll=float(nll[:, gone].mean()), stderr=error))
        steps.append([plan.kept[gone], points[-1].nll, error])
        if checkpoint is not None:
            save_checkpoint(checkpoint, key, {"base": base, "steps": np.array(steps)})
        detail = f"removed layer {plan.kept[gone]}"
        watch.tell("greedy", done=step, total=limit, unit="layers", detail=detail, snapshot=partial)
    if not points:
        raise Stopped("Stopped before the first layer was removed; there is nothing to keep.")
    return partial()


def check_removed(num_layers: int, wanted: int) -> None:
    """Raise PlanError for a number of layers to remove outside 1 .. L-1."""
    if not 1 <= wanted <= num_layers - 1:
        raise PlanError(f"The layers to remove are {wanted}; give 1 to {num_layers - 1}.")


def single_layer_losses(
    handle: ModelHandle,
    windows: WindowSet,
    watch: Watch,
    on_share: Callable[[float], None] | None = None,
    *,
    engine: Engine | None = None,
) -> tuple[Floats, Floats]:
    """Return NLL per window before (windows,) and without each layer (windows, layers), NaN for illegal ones.

    Raises Stopped; `on_share` is told the share of windows done. `engine` spares the making of one.
    """
    engine = engine or open_engine(handle, windows.tokens[0])
    blocks = [Block(start=i, n=1) for i in range(handle.info.num_layers)]
    legal = [block for block in blocks if handle.info.illegal_reason(block) is None]
    before, nll = np.zeros(len(windows.tokens)), np.full((len(windows.tokens), len(blocks)), np.nan)
    for index, tokens in enumerate(windows.tokens):
        watch.check("Stopped while the layers were measured.")
        opened = engine.open(tokens)
        before[index] = opened.base.nll
        if legal:
            measured, losses = opened.losses(legal, Watch(stop=watch.stop))
            nll[index, [block.start for block in measured]] = losses[0]
        if on_share is not None:
            on_share((index + 1) / len(windows.tokens))
    return before, nll


# The best start for each n without measuring every block on all the text.


def search_best_starts(
    handle: ModelHandle, windows: WindowSet, *, max_n: int | None = None, watch: Watch = NO_WATCH
) -> SearchResult:
    """Return the best start for each n = 1 .. max_n (L-1 if None), and the starts statistically tied with it.

    Successive elimination, window by window, as `SuccessiveElimination` has it. A stop gives what there is.
    Raises PlanError for a max_n outside 1 .. L-1, Stopped before the first window, TextError and NumericsError as
    `evaluate` does.
    """
    elimination = SuccessiveElimination(handle.info, max_n)
    check_windows(handle, windows)
    engine = open_engine(handle, windows.tokens[0])
    total = len(windows.tokens)
    for index, tokens in enumerate(windows.tokens):
        wanted = elimination.wanted()
        if not wanted or watch.stopped:
            break
        opened = engine.open(tokens)
        try:
            blocks, losses = opened.losses(wanted, Watch(stop=watch.stop))
        except Stopped:
            break
        elimination.add(blocks, losses[0] - opened.base.nll)
        detail = f"{elimination.left} blocks left for {len(elimination.remaining)} sizes"
        watch.tell(
            "search", done=index + 1, total=total, unit="windows", detail=detail,
            snapshot=lambda: elimination.result(windows.info, total),
        )  # fmt: skip
    if elimination.windows == 0:
        raise Stopped("Stopped before the first window was measured; there is nothing to keep.")
    return elimination.result(windows.info, total)
