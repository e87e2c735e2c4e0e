"""Repair: make the layers around a cut fit each other again, in closed form, without training.

The layer before a seam is refitted so that what leaves it is what the uncut model had after the removed layers: least
squares on text, in float64, held back by a ridge that is chosen on rows left out of the fit. A repair that does not
lower the end loss on those rows is not applied.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from shortviz.errors import ModelError, PlanError
from shortviz.measure.batches import check_rows
from shortviz.model.handle import ModelHandle
from shortviz.model.spread import refuse_spread
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.ledger import Setting, Treatment
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TokenSet
from shortviz.repair.candidate import Candidate, Trial, Work
from shortviz.repair.methods import refit, rescale

_RECIPES: Mapping[str, Callable[[Work], tuple[Candidate, list[Trial]]]] = {
    "seam_refit": refit,
    "linear_fold": refit,
    "scale": rescale,
}
METHODS = tuple(_RECIPES)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Repaired:
    """A cut model after a repair."""

    handle: ModelHandle
    """A new model: repaired tensors are its own, all others are shared. The cut handle itself where nothing helped."""
    treatment: Treatment
    """What was done, with its settings and what it gave on the held-out rows."""
    applied: bool
    """False: the loss on held-out rows did not fall, so nothing was changed; the treatment's note has the numbers."""


def repair(
    cut: ModelHandle,
    base: ModelHandle,
    tokens: TokenSet,
    *,
    method: str = "seam_refit",
    blocks: Sequence[Block] | None = None,
    batch_size: int = 8,
    watch: Watch = NO_WATCH,
) -> Repaired:
    """Return the cut model repaired towards the uncut one on some text; neither handle is touched.

    `cut` was made from `base` by pruning, and may have been repaired before. Every eighth row (at least one) is left
    out of the fit: the ridge is the one that misses least of the wanted change there, and a seam's repair is kept only
    if the end loss falls there. Several seams are repaired in order from the front, each as the repaired model has it.

    `seam_refit` solves the last linear layer before the seam anew, from what it reads; then together with the
    attention's projection of the same layer; then both again with neurons of the removed layers' MLPs in the places of
    those that write less (ours, see `repair_pool`); and keeps what is best on the held-out rows. `linear_fold` puts the
    best linear map of what that layer gives behind it (after ReplaceMe, arXiv 2505.02819, but shrinking towards the
    identity and not to 0). Where a norm follows the MLP only its scale is linear, and both refit that. `scale` is one
    number (see `repair_scale`).

    `blocks` are those of the plan whose seams are to be repaired; all if None.

    Memory besides the models: the residual stream of all rows, once for the candidate and once a seam, and the moments
    (see `seam_moments`).

    Raises PlanError where nothing is missing or no layer stands before the only seam, ModelError for a base of another
    model and for families without anything to refit, TextError for too little text (with the number needed),
    NumericsError for NaN or Inf, Stopped when stopped.
    """
    began = time.perf_counter()
    plan = _checked_plan(cut, base, method)
    refuse_spread(cut, "A repair")
    stray = [block for block in blocks or () if block not in plan.blocks]
    if stray:
        raise PlanError(
            f"The cut has no seam of {stray[0]}; its removed blocks are {', '.join(map(str, plan.blocks))}."
        )
    check_rows(base.info, tokens)
    work = Work(
        cut=cut,
        base=base,
        plan=plan,
        method=method,
        blocks=plan.blocks if blocks is None else tuple(blocks),
        tokens=tokens,
        batch_size=batch_size,
        watch=watch,
    )
    candidate, trials = _RECIPES[method](work)
    return _report(work, candidate, trials, time.perf_counter() - began)


def check_method(method: str) -> None:
    """Raise PlanError for a method that there is not."""
    if method not in METHODS:
        raise PlanError(f"There is no repair called {method!r}; choose {', '.join(METHODS)}.")


def _checked_plan(cut: ModelHandle, base: ModelHandle, method: str) -> PrunePlan:
    check_method(method)
    plan = cut.plan
    if plan is None or not plan.removed:
        raise PlanError("No layer is missing from this model, so there is nothing to repair; cut it first.")
    if base.info.id != cut.info.id or base.info.hidden_size != cut.info.hidden_size:
        raise ModelError(f"The cut model was cut from {cut.info.id}, not from {base.info.id}; give that one.")
    if base.info.num_layers != plan.num_layers:
        raise PlanError(
            f"The cut is one of {plan.num_layers} layers, and the uncut model has {base.info.num_layers}; give the "
            "model it was cut from."
        )
    return plan


def _report(work: Work, candidate: Candidate, trials: Sequence[Trial], seconds: float) -> Repaired:
    kept = [trial for trial in trials if trial.applied]
    settings: dict[str, Setting] = {
        "weights": ", ".join(name for trial in kept for name in trial.weights),
        "factor" if work.method == "scale" else "ridge": ", ".join(f"{trial.found:.4g}" for trial in trials),
        "fit_tokens": trials[0].tokens,
        "held_out_tokens": int(candidate.weights.sum()),
        "held_out_nll_cut": candidate.mean(trials[0].before),
        "held_out_nll_repaired": candidate.mean(candidate.nll),
        "batch_size": work.batch_size,
    }
    treatment = Treatment(
        kind="repair",
        method=work.method,
        settings=settings,
        text=work.tokens.info,
        seconds=seconds,
        note=_note(candidate, trials),
    )
    if not kept:
        return Repaired(handle=work.cut, treatment=treatment, applied=False)
    handle = replace(candidate.handle, treatments=(*work.cut.treatments, treatment))
    return Repaired(handle=handle, treatment=treatment, applied=True)


def _note(candidate: Candidate, trials: Sequence[Trial]) -> str:
    """Return what was not applied and why, what there is to say of the rest, and the loss on held-out rows."""
    parts = []
    for trial in trials:
        if not trial.applied:
            parts.append(
                f"{trial.subject} was left as it was: {trial.how}, the loss on held-out rows would have gone from "
                f"{candidate.mean(trial.before):.4f} to {candidate.mean(trial.after):.4f}."
            )
        elif trial.remark:
            parts.append(trial.remark)
    if any(trial.applied for trial in trials):
        parts.append(
            f"Loss on held-out rows {candidate.mean(trials[0].before):.4f} before, "
            f"{candidate.mean(candidate.nll):.4f} after."
        )
    return " ".join(parts)
