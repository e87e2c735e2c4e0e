"""Task accuracy on the removal curve: which cuts to score, and the lines through the scores. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from shortviz.curve import RemovalCurve
from shortviz.errors import PlanError
from shortviz.records import Run, TaskScore


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
