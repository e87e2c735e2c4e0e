"""Advice: the plan for a budget, from what a run has measured; distances only where nothing was. No torch."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from shortviz import criteria
from shortviz.errors import PlanError
from shortviz.records.advice import Advice, Budget, Candidate
from shortviz.records.formatting import layers_text, size
from shortviz.records.measured import BlockDistances, BlockLosses, Evaluation
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.records.sums import paired_stderr

TIE_ERRORS = 2.0
"""Plans whose difference is within so many of its standard errors cannot be told apart."""
LITTLE_TOKENS = 4000
"""Fewer scored tokens than this deserve a warning: the error itself is then badly known."""
_FALLBACKS = ("angular_last", "angular_mean", "block_influence")


def advise(run: Run, budget: Budget, *, bare: bool = False) -> Advice:
    """Return the plan for a budget, chosen from everything that was measured in a run, with or without repair.

    Per plan and repair the measurement on most text counts. Of the plans that fit, the one of lowest NLL is taken; for
    a largest increase, the one that removes most parameters. Where no measured plan fits a budget of layers or bytes,
    the block of lowest distance is proposed, and `measured` says so. With `bare`, plans are compared as they are cut,
    and `repaired` is what came of repairing the chosen one.

    Raises PlanError where nothing fits, in a sentence that names what comes nearest.
    """
    model = run.model
    every = candidates(run)
    known = [c for c in every if not c.methods] if bare else every
    fitting = [c for c in known if _fits(c, budget, model)]
    if not fitting:
        return _by_distance(run, budget, known)
    chosen = _choose(fitting, budget, model)
    rivals = [c for c in fitting if c is not chosen and _tied(c, chosen) and _removes_as_much(c, chosen, budget, model)]
    expected, method = _expected(run, chosen)
    treated = [c for c in every if c.methods and not chosen.methods and c.removed == chosen.removed]
    return Advice(
        **_planned(chosen, budget, model),
        measured=True,
        ties=tuple(sorted(rivals, key=lambda c: c.increase)),
        compared=len(fitting),
        expected=expected,
        expected_method=method,
        repaired=min(treated, key=lambda c: c.increase, default=None),
        notes=(*_notes(run, budget, chosen, rivals, len(fitting)), *_unrepaired(fitting, chosen)),
    )


def _planned(plan: Candidate, budget: Budget, model: ModelInfo) -> dict[str, Any]:
    parameters, weights, _ = model.sizes(plan.removed)
    left = {"parameters": model.parameters - parameters, "bytes": model.bytes - weights}
    return {"budget": budget, "plan": plan, **left}


def candidates(run: Run) -> list[Candidate]:
    """Return every plan of which the run holds a measured loss, once for each way it was repaired."""
    best: dict[tuple[tuple[int, ...], tuple[str, ...]], Candidate] = {}
    for found in _all(run):
        old = best.get((found.removed, found.methods))
        if old is None or (found.tokens, bool(found.window_nll)) > (old.tokens, bool(old.window_nll)):
            best[found.removed, found.methods] = found
    return [c for c in best.values() if _exportable(c.removed, run.model)]


def _all(run: Run) -> Iterator[Candidate]:
    if run.losses is not None:
        yield from _from_map(run.losses)
    for evaluation in run.evaluations:
        if evaluation.removed and evaluation.nll_increase is not None:
            yield _from_evaluation(evaluation, (), "evaluation")
    for ledger in run.ledgers:
        for step in ledger.steps:
            if step.evaluation.removed and step.evaluation.nll_increase is not None:
                yield _from_evaluation(step.evaluation, step.methods, "ledger")


def _from_map(losses: BlockLosses) -> Iterator[Candidate]:
    for row, start in zip(*np.nonzero(np.isfinite(losses.increase.mean) & (losses.windows > 0)), strict=True):
        block = Block(start=int(start), n=int(row) + 1)
        increase, error = losses.increase.at(block)
        yield Candidate(
            removed=block.layers,
            increase=increase,
            stderr=error,
            text=losses.text,
            tokens=int(losses.tokens[row, start]),
            windows=int(losses.windows[row, start]),
            source="measured map",
        )


def _from_evaluation(evaluation: Evaluation, methods: tuple[str, ...], source: str) -> Candidate:
    assert evaluation.nll_increase is not None
    error = evaluation.nll_increase_stderr
    return Candidate(
        removed=evaluation.removed,
        methods=methods,
        increase=evaluation.nll_increase,
        stderr=math.nan if error is None else error,
        text=evaluation.text,
        tokens=evaluation.score.tokens,
        windows=evaluation.score.windows,
        source=source,
        window_nll=evaluation.score.window_nll,
    )


def _exportable(removed: tuple[int, ...], model: ModelInfo) -> bool:
    """Tell whether a block can be exported; what the run knows of it. Scattered plans were pruned to be measured."""
    block = Block(start=removed[0], n=len(removed))
    return block.layers != removed or model.illegal_reason(block) is None


def _fits(found: Candidate, budget: Budget, model: ModelInfo) -> bool:
    if budget.layers is not None:
        return len(found.removed) >= budget.layers
    if budget.bytes is not None:
        return model.bytes - model.sizes(found.removed)[1] <= budget.bytes
    return found.increase <= (budget.max_increase or 0.0)


def _choose(fitting: Sequence[Candidate], budget: Budget, model: ModelInfo) -> Candidate:
    if budget.max_increase is None:
        return min(fitting, key=lambda c: c.increase)
    return min(fitting, key=lambda c: (-model.sizes(c.removed)[0], c.increase))


def _removes_as_much(one: Candidate, other: Candidate, budget: Budget, model: ModelInfo) -> bool:
    return budget.max_increase is None or model.sizes(one.removed)[0] >= model.sizes(other.removed)[0]


def _tied(one: Candidate, other: Candidate) -> bool:
    """Tell whether two plans are within the error of their difference: paired where windows are the same."""
    difference, error = abs(one.increase - other.increase), math.hypot(_error(one), _error(other))
    same = one.text is not None and other.text is not None and one.text.fingerprint == other.text.fingerprint
    paired = paired_stderr(one.window_nll, other.window_nll) if same else math.nan
    return difference <= TIE_ERRORS * (error if math.isnan(paired) else paired)


def _error(found: Candidate) -> float:
    return 0.0 if math.isnan(found.stderr) else found.stderr


def _expected(run: Run, chosen: Candidate) -> tuple[tuple[float, float] | None, str]:
    """Return the shares that repairs of this run won back, and the best method; nothing where the plan is repaired."""
    shares: dict[str, list[float]] = {}
    for step in (s for ledger in run.ledgers for s in ledger.steps if s.name == "repaired"):
        if step.recovered is not None and math.isfinite(step.recovered):
            shares.setdefault(step.methods[-1], []).append(step.recovered)
    if chosen.methods or not shares:
        return None, ""
    method = max(shares, key=lambda name: statistics.median(shares[name]))
    return (min(shares[method]), max(shares[method])), method


def _notes(run: Run, budget: Budget, chosen: Candidate, rivals: Sequence[Candidate], fitting: int) -> Iterator[str]:
    if math.isnan(chosen.stderr):
        yield "One window stands behind it, so its error is not known; measure it on more text."
    elif chosen.tokens < LITTLE_TOKENS:
        yield f"{chosen.tokens:,} scored tokens are little text; measure it on more before you rely on it."
    limit = budget.max_increase
    if limit is not None and chosen.increase + TIE_ERRORS * _error(chosen) > limit:
        yield f"Within two errors it may also be above the limit of {limit:g} nats."
    if budget.layers is not None and len(chosen.removed) > budget.layers:
        yield f"It removes {len(chosen.removed)} layers, more than asked for, and still has the lowest measured loss."
    others = {c.text.fingerprint for c in (chosen, *rivals) if c.text is not None}
    if len(others) > 1:
        yield "Some of the tied plans were measured on other windows; evaluate them on the same ones before comparing."
    if fitting > 1 and chosen.source == "measured map":
        yield f"It is the best of {fitting} on this text, so expect a little more loss on other text."
    if run.losses is None:
        yield "The run has no measured map: only the cuts that were evaluated were compared."
    elif not run.losses.complete:
        yield "The measured map is unfinished: blocks that it lacks were not compared."


def _unrepaired(fitting: Sequence[Candidate], chosen: Candidate) -> list[str]:
    """Say which cut might beat the chosen one, were it repaired too."""
    bare = [c for c in fitting if not c.methods]
    cut = next((c for c in bare if c.removed == chosen.removed), None)
    best = min(bare, key=lambda c: c.increase, default=None)
    if not chosen.methods or best is None or cut is None or best.increase >= cut.increase:
        return []
    return [
        f"Unrepaired, the cut of layers {layers_text(best.removed)} loses less ({best.cost} against "
        f"{cut.cost} nats): repair that one too before you decide."
    ]


def _by_distance(run: Run, budget: Budget, known: Sequence[Candidate]) -> Advice:
    """Return the block of lowest distance that fits; raises PlanError where there is none, or the budget is a loss."""
    model = run.model
    if budget.max_increase is not None:
        raise PlanError(_nothing(budget, known))
    found = _closest_block(run.distances, budget, model) if run.distances is not None else None
    if found is None:
        raise PlanError(_too_much(budget, model) or _nothing(budget, known))
    candidate, sink = found
    notes = [
        f"No cut that {budget.words} was measured: {criteria.label(candidate.source)} says how little the block "
        "changes the residual stream, not what removing it costs; measure it before you rely on it."
    ]
    notes += ["It removes a layer that writes the attention sink: expect far more loss."] if sink else []
    planned = _planned(candidate, budget, model)
    return Advice(**planned, measured=False, ties=(), compared=0, notes=tuple(notes))


def _closest_block(distances: BlockDistances, budget: Budget, model: ModelInfo) -> tuple[Candidate, bool] | None:
    """Return the block of lowest distance of the smallest n that fits, and whether it removes a sink layer.

    Blocks that keep the layers which write the attention sink come first: no distance sees what removing one costs.
    """
    name = next((c for c in _FALLBACKS if c in distances.criteria), next(iter(distances.criteria), None))
    for n in range(1, model.num_layers) if name is not None else ():
        scored = []
        for block in (Block(start=start, n=n) for start in range(model.num_layers - n + 1)):
            plan = Candidate(removed=block.layers, source=name or "")
            value = distances.criteria[name or ""].at(block)[0]
            if _fits(plan, budget, model) and _exportable(plan.removed, model) and math.isfinite(value):
                scored.append((bool(distances.sink_layers_in(block)), value, plan))
        if scored:
            sink, _, plan = min(scored, key=lambda each: each[:2])
            return plan, sink
    return None


def _too_much(budget: Budget, model: ModelInfo) -> str:
    """Return why no cut of this model whatever fits the budget; "" where one might."""
    if (budget.layers or 0) >= model.num_layers:
        most = model.num_layers - 1
        return f"{model.id} has {model.num_layers} layers, so at most {most} can go; {budget.layers} is too many."
    least = model.bytes - sum(model.layer_bytes) + min(model.layer_bytes)
    if budget.bytes is None or budget.bytes >= least:
        return ""
    return (
        f"{model.id} takes at least {size(least)} with one layer left, for embeddings and head stay; "
        f"{size(budget.bytes)} is too little."
    )


def _nothing(budget: Budget, known: Sequence[Candidate]) -> str:
    if not known:
        return (
            f"Nothing was measured in this run, so there is no plan that {budget.words}; measure the map first "
            "(shortviz map RUN)."
        )
    if budget.max_increase is not None:
        best = min(known, key=lambda c: c.increase)
        return (
            f"No measured cut {budget.words}; the least is {best.cost} nats, without layers "
            f"{layers_text(best.removed)}: raise the limit, or repair or heal a cut and ask again."
        )
    most = max(known, key=lambda c: len(c.removed))
    return (
        f"No measured cut {budget.words}; the largest removes {len(most.removed)} layers "
        f"({layers_text(most.removed)}): measure larger ones (shortviz map RUN)."
    )
