"""The removal curve: loss against layers removed, for several strategies (Gromov et al. 2024, figure 1). No torch."""

import math
from dataclasses import dataclass, replace

import numpy as np

from shortviz import criteria
from shortviz.map_cells import exportable
from shortviz.planning import best_start, simple_plan
from shortviz.record_json import Many, Number
from shortviz.records import Block, BlockDistances, BlockLosses, ModelInfo, Run, TextInfo, perplexity


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """The loss with n layers removed."""

    n: int
    removed: Many[int]
    """Empty for the mean over random blocks."""
    nll: float
    """In nats per token."""
    stderr: Number
    """Paired standard error of the increase from the uncut model; for random blocks the spread between starts (SD)."""

    @property
    def perplexity(self) -> float:
        """Exp of the NLL."""
        return perplexity(self.nll)


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveLine:
    """One strategy, by ascending n; sizes it has no measured plan for are left out."""

    strategy: str
    """`best measured`, `simple`, `random`, `greedy`, or the name of a criterion."""
    label: str
    points: Many[CurvePoint]


@dataclass(frozen=True, kw_only=True, slots=True)
class GreedyRemoval:
    """Greedy removal as a run keeps it."""

    line: CurveLine
    text: TextInfo
    """The evaluation windows that every step was measured on."""
    complete: bool = True
    """False: stopped before the layers asked for were gone."""


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
    if model is not None:
        losses = replace(losses, increase=exportable(losses.increase, model))
    layers, sizes = losses.num_layers, range(1, losses.num_layers)
    grids = {"best measured": losses.increase}
    if distances is not None:
        grids |= {name: grid for name, grid in distances.criteria.items() if grid.samples}
    lines = []
    for name, grid in grids.items():
        starts = ((n, best_start(grid, n, model)) for n in sizes)
        label = "best measured block" if name == "best measured" else f"block by {criteria.label(name)}"
        lines.append(_line(name, label, losses, [Block(start=s, n=n) for n, s in starts if s is not None]))
    deepest = [simple_plan(layers, n).blocks[0] for n in sizes]
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
