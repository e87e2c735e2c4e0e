"""Greedy scattered removal: take out the least harmful layer, measure again, repeat (as SLEB, arXiv 2402.09025)."""

from collections.abc import Callable, Sequence

import numpy as np

from shortviz.block_losses import Engine, open_engine
from shortviz.curve import CurveLine, CurvePoint, GreedyRemoval, uncut
from shortviz.errors import PlanError, Stopped
from shortviz.handle import ModelHandle
from shortviz.losses import check_windows
from shortviz.progress import NO_WATCH, Watch
from shortviz.pruning import prune
from shortviz.records import Block, Floats, PrunePlan, WindowSet
from shortviz.sums import mean_and_stderr


def greedy_removal(
    handle: ModelHandle, windows: WindowSet, *, max_removed: int | None = None, watch: Watch = NO_WATCH
) -> GreedyRemoval:
    """Return the loss after each step of greedy removal, n = 0 .. max_removed (L-1 if None).

    At each step the loss without every layer still there is measured on all windows (a row n = 1 of the measured map of
    the model pruned so far), and the layer whose removal costs least goes. Layers that the config cannot do without
    are passed over; where none is left to remove, or on `stop`, the line ends. Partial results come by
    `Progress.snapshot`. Whether replay is exact is checked once, on the uncut model.
    Raises PlanError for a max_removed outside 1 .. L-1, Stopped before the first step, TextError and NumericsError as
    `evaluate` does.
    """
    layers = handle.info.num_layers
    limit = layers - 1 if max_removed is None else max_removed
    check_removed(layers, limit)
    check_windows(handle, windows)
    points: list[CurvePoint] = []
    removed: tuple[int, ...] = ()
    base: Floats | None = None
    engine: Engine | None = None

    def partial() -> GreedyRemoval:
        line = CurveLine(strategy="greedy", label="greedy scattered layers", points=tuple(points))
        return GreedyRemoval(line=line, text=windows.info, complete=len(points) == limit + 1)

    for step in range(1, limit + 1):
        plan = PrunePlan(num_layers=layers, removed=removed)
        pruned = prune(handle, plan)
        engine = open_engine(pruned, windows.tokens[0], like=engine)
        measured = single_layer_losses(pruned, windows, watch, engine=engine)
        if measured is None:
            break
        before, nll = measured
        if base is None:
            base = before
            points.append(uncut(float(base.mean())))
        means = nll.mean(0)
        if np.isnan(means).all():
            break
        gone = int(np.nanargmin(means))
        removed = tuple(sorted((*removed, plan.kept[gone])))
        points.append(_point(removed, nll[:, gone], base))
        detail = f"removed layer {plan.kept[gone]}"
        watch.tell("greedy", done=step, total=limit, unit="layers", detail=detail, snapshot=partial)
    if not points:
        raise Stopped("Stopped before the first layer was removed; there is nothing to keep.")
    return partial()


def check_removed(num_layers: int, wanted: int) -> None:
    """Raise PlanError for a number of layers to remove outside 1 .. L-1."""
    if not 1 <= wanted <= num_layers - 1:
        raise PlanError(f"The layers to remove are {wanted}; give 1 to {num_layers - 1}.")


def _point(removed: Sequence[int], nll: Floats, base: Floats) -> CurvePoint:
    error = mean_and_stderr(nll - base)[1]
    return CurvePoint(n=len(removed), removed=tuple(removed), nll=float(nll.mean()), stderr=error)


def single_layer_losses(
    handle: ModelHandle,
    windows: WindowSet,
    watch: Watch,
    on_share: Callable[[float], None] | None = None,
    *,
    engine: Engine | None = None,
) -> tuple[Floats, Floats] | None:
    """Return NLL per window before (windows,) and without each layer (windows, layers), NaN for illegal ones.

    None when stopped; `on_share` is told the share of windows done. `engine` spares the making of one.
    """
    engine = engine or open_engine(handle, windows.tokens[0])
    blocks = [Block(start=i, n=1) for i in range(handle.info.num_layers)]
    legal = [block for block in blocks if handle.info.illegal_reason(block) is None]
    before, nll = np.zeros(len(windows.tokens)), np.full((len(windows.tokens), len(blocks)), np.nan)
    for index, tokens in enumerate(windows.tokens):
        if watch.stopped:
            return None
        opened = engine.open(tokens)
        measured = opened.losses(legal, watch) if legal else ([], np.zeros((2, 0)))
        if measured is None:
            return None
        before[index] = opened.base.nll
        nll[index, [block.start for block in measured[0]]] = measured[1][0]
        if on_share is not None:
            on_share((index + 1) / len(windows.tokens))
    return before, nll
