"""The removal curve: loss against layers removed, for several strategies (Gromov et al. 2024, figure 1). No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shortviz import criteria
from shortviz.analysis.planning import best_starts, exportable, simple_plan
from shortviz.errors import PlanError
from shortviz.records.measured import BlockDistances, BlockLosses, CurveLine, CurvePoint, GreedyRemoval
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.records.text import TaskScore, TextInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class RemovalCurve:
    """Loss against layers removed, all strategies on the same evaluation text."""

    num_layers: int
    base_nll: float
    lines: tuple[CurveLine, ...]
    text: TextInfo


def curve_from_map(
    losses: BlockLosses,
    distances: BlockDistances | None = None,
    model: ModelInfo | None = None,
    greedy: CurveLine | None = None,
) -> RemovalCurve:
    """Return the curve of every strategy that removes one block, read off the measured map, n = 0 .. L-1.

    Similarity-informed blocks (each criterion of `distances`), the paper's simple deepest block, the best measured
    block, and the mean over all blocks of a size, which is what a random one costs on average. `greedy` adds the line
    of `greedy_removal`. With `model`, blocks that cannot be exported are on no line.
    """
    losses = replace(losses, increase=exportable(losses.increase, model))
    layers = losses.num_layers
    grids = {"best measured": losses.increase}
    if distances is not None:
        grids |= {name: grid for name, grid in distances.criteria.items() if grid.samples}
    lines = []
    for name, grid in grids.items():
        blocks = [Block(start=s, n=n) for n, s in best_starts(grid, model).items() if n < layers]
        label = "best measured block" if name == "best measured" else f"block by {criteria.label(name)}"
        lines.append(_line(name, label, losses, blocks))
    deepest = [simple_plan(layers, n).blocks[0] for n in range(1, layers)]
    lines.append(_line("simple", "deepest block but the last layer", losses, deepest))
    lines.append(_random(losses))
    return RemovalCurve(
        num_layers=layers,
        base_nll=losses.base.nll,
        lines=(*lines, greedy) if greedy is not None else tuple(lines),
        text=losses.text,
    )


def curve_of_run(run: Run) -> RemovalCurve | None:
    """Return the curve of everything a run holds; None without a measured map.

    Greedy removal is on it where it was measured on the windows of the map.
    """
    if run.losses is None:
        return None
    same = run.greedy is not None and run.greedy.text.fingerprint == run.losses.text.fingerprint
    return curve_from_map(run.losses, run.distances, run.model, run.greedy.line if run.greedy and same else None)


def further(known: GreedyRemoval | None, found: GreedyRemoval) -> GreedyRemoval:
    """Return the one that removed more layers, where both are of the same windows; the new one otherwise."""
    if known is None or known.text.fingerprint != found.text.fingerprint:
        return found
    return max(found, known, key=lambda one: len(one.line.points))


def uncut(nll: float) -> CurvePoint:
    """Return the point where every line starts."""
    return CurvePoint(n=0, removed=(), nll=nll, stderr=0.0)


def _line(strategy: str, label: str, losses: BlockLosses, blocks: list[Block]) -> CurveLine:
    points = [uncut(losses.base.nll)]
    for block in blocks:
        increase, error = losses.increase.at(block)
        if math.isfinite(increase):
            nll = losses.base.nll + increase
            points.append(CurvePoint(n=block.n, removed=block.layers, nll=nll, stderr=error))
    return CurveLine(strategy=strategy, label=label, points=tuple(points))


def _random(losses: BlockLosses) -> CurveLine:
    points = [uncut(losses.base.nll)]
    for n in range(1, losses.num_layers):
        row = losses.increase.row(n)
        known = row[np.isfinite(row)]
        if known.size:
            spread = float(known.std(ddof=1)) if known.size > 1 else float("nan")
            points.append(CurvePoint(n=n, removed=(), nll=losses.base.nll + float(known.mean()), stderr=spread))
    return CurveLine(strategy="random", label="random block, mean and spread", points=tuple(points))


# Task accuracy on the removal curve: which cuts to score, and the lines through the scores. No torch.


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyLine:
    """One strategy's accuracies, by ascending n; sizes that were not scored are left out."""

    strategy: str
    label: str
    points: tuple[tuple[int, TaskScore], ...]
    """(n, accuracy of the cut model); n 0 is the uncut one."""


def default_sizes(num_layers: int) -> tuple[int, ...]:
    """Return the sizes that are scored where nobody chose: 1 layer, and eighths of the layers up to half."""
    return tuple(sorted({n for n in (1, *(round(num_layers * k / 8) for k in range(1, 5))) if 1 <= n < num_layers}))


def strategies_of(curve: RemovalCurve) -> tuple[str, ...]:
    """Return the strategies whose cuts can be scored: all but random, whose points are means over many cuts."""
    return tuple(line.strategy for line in curve.lines if line.strategy != "random")


def strategies_to_come(run: Run | None, *, greedy: bool) -> tuple[str, ...]:
    """Return the strategies that `strategies_of` will find once the run has a map, and greedy removal where wanted."""
    distances, removal = (run.distances, run.greedy) if run is not None else (None, None)
    criteria = [name for name, grid in distances.criteria.items() if grid.samples] if distances is not None else []
    return ("best measured", *criteria, "simple", *(["greedy"] if greedy or removal is not None else []))


def plans_to_score(curve: RemovalCurve, strategies: Sequence[str], sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the layers to remove, each cut once however many strategies choose it; first none, the uncut model.

    Raises PlanError for a strategy that the curve does not have, or a size outside 1 .. L-1.
    """
    check_strategies(strategies_of(curve), strategies)
    check_sizes(curve.num_layers, sizes)
    points = [p for line in curve.lines if line.strategy in strategies for p in line.points if p.n in sizes]
    return tuple(dict.fromkeys([(), *(p.removed for p in sorted(points, key=lambda p: p.n))]))


def check_strategies(known: Sequence[str], strategies: Sequence[str]) -> None:
    """Raise PlanError for a strategy that is not known."""
    unknown = [name for name in strategies if name not in known]
    if unknown:
        raise PlanError(f"There is no strategy {unknown[0]!r} on this curve; choose from {', '.join(known)}.")


def check_sizes(num_layers: int, sizes: Sequence[int]) -> None:
    """Raise PlanError for a number of layers to remove outside 1 .. L-1."""
    outside = [n for n in sizes if not 1 <= n < num_layers]
    if outside:
        raise PlanError(f"The size {outside[0]} is outside 1-{num_layers - 1}; choose other sizes.")


def accuracy_lines(curve: RemovalCurve, scores: Sequence[TaskScore], fingerprint: str) -> tuple[AccuracyLine, ...]:
    """Return a line for each strategy with at least one scored cut; scores of other questions are passed over."""
    found = {score.removed: score for score in scores if score.fingerprint == fingerprint}
    lines = []
    for line in curve.lines:
        here = [p for p in line.points if p.removed in found and (p.removed or p.n == 0)]
        if line.strategy != "random" and any(p.n for p in here):
            points = tuple((p.n, found[p.removed]) for p in here)
            lines.append(AccuracyLine(strategy=line.strategy, label=line.label, points=points))
    return tuple(lines)


def task_sets(scores: Sequence[TaskScore]) -> dict[str, TaskScore]:
    """Return fingerprint -> one score, of every set of questions there are scores of, the newest last."""
    return {score.fingerprint: score for score in scores}
