"""Repair: make the layers around a cut fit each other again, in closed form, without training.

The layer before a seam is refitted so that what leaves it is what the uncut model had after the removed layers: least
squares on text, in float64, held back by a ridge that is chosen on rows left out of the fit. A repair that does not
lower the end loss on those rows is not applied.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shortviz.errors import ModelError, PlanError, TextError
from shortviz.handle import ModelHandle
from shortviz.ledger import Setting, Treatment
from shortviz.records import Block, OnProgress, Progress, PrunePlan, Tokens, TokenSet
from shortviz.repair_draft import Draft, Outcome, open_draft
from shortviz.residual_writers import find_writers
from shortviz.seam_fit import Reads, Site
from shortviz.token_batches import check_rows

METHODS = ("seam_refit", "linear_fold")
HELD_OUT_EVERY = 8
"""Every eighth row is left out of the fit: the ridge is chosen, and the repair judged, on those."""


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
    batch_size: int = 8,
    on_progress: OnProgress | None = None,
    stop: threading.Event | None = None,
) -> Repaired:
    """Return the cut model repaired towards the uncut one on some text; neither handle is touched.

    `cut` was made from `base` by pruning, and may have been repaired before. Every eighth row (at least one) is left
    out of the fit: the ridge is the one that misses least of the wanted change there, and a seam's repair is kept only
    if the end loss falls there. Several seams are repaired in order from the front, each as the repaired model has it.

    `seam_refit` solves the last linear layer before the seam anew, from what it reads. `linear_fold` puts the best
    linear map of what that layer gives behind it (after ReplaceMe, arXiv 2505.02819, but shrinking towards the identity
    and not to 0). Where a norm follows the MLP only its scale is linear, and both refit that.

    Memory besides the models: the residual stream of all rows, once for the draft and once a seam, and the moments
    (see `seam_moments`).

    Raises PlanError where nothing is missing or no layer stands before the only seam, ModelError for a base of another
    model and for families without anything to refit, TextError for too little text (with the number needed),
    NumericsError for NaN or Inf, Stopped when stopped.
    """
    began = time.perf_counter()
    plan = _checked_plan(cut, base, method)
    check_rows(base.info, tokens)
    work = _Work(
        cut=cut, base=base, plan=plan, tokens=tokens, batch_size=batch_size, on_progress=on_progress, stop=stop
    )
    sites = _sites(work, method)
    _check_enough(work, sites, method)
    draft, outcomes = _fit_sites(work, sites)
    return _report(work, draft, outcomes, method, time.perf_counter() - began)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Work:
    cut: ModelHandle
    base: ModelHandle
    plan: PrunePlan
    tokens: TokenSet
    batch_size: int
    on_progress: OnProgress | None
    stop: threading.Event | None

    @property
    def held_out(self) -> list[Tokens]:
        every = min(HELD_OUT_EVERY, len(self.tokens.rows))
        return [row for i, row in enumerate(self.tokens.rows) if i % every == every - 1]

    @property
    def fitted(self) -> list[Tokens]:
        every = min(HELD_OUT_EVERY, len(self.tokens.rows))
        return [row for i, row in enumerate(self.tokens.rows) if i % every != every - 1]


def _checked_plan(cut: ModelHandle, base: ModelHandle, method: str) -> PrunePlan:
    if method not in METHODS:
        raise PlanError(f"There is no repair called {method!r}; choose {', '.join(METHODS)}.")
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


def _sites(work: _Work, method: str) -> list[Site]:
    """Return what is to be fitted, from the front; raises PlanError or ModelError where there is nothing."""
    blocks = [block for block in work.plan.blocks if block.start > 0]
    if not blocks:
        raise PlanError(
            "The cut begins at layer 0, so no layer stands before the seam and there is nothing to refit; choose a "
            "block that starts at 1 or later, or heal the cut by training."
        )
    return [_seam_site(work, block, method) for block in blocks]


def _seam_site(work: _Work, block: Block, method: str) -> Site:
    layer = work.plan.kept.index(block.start - 1)
    writers = find_writers(work.cut, layer)
    if not writers:
        raise ModelError(
            f"Layer {block.start - 1} of {work.cut.info.architecture} ends in a mixture of experts, or in something "
            "else that is not linear, so it cannot be refitted; heal the cut by training instead."
        )
    reads: Reads = "inputs" if method == "seam_refit" else "outputs"
    return Site(layer=layer, boundary=block.start + block.n, writer=writers[0], reads=reads)


def _check_enough(work: _Work, sites: Sequence[Site], method: str) -> None:
    """Raise TextError where there are fewer tokens to fit on than numbers to fit for each output."""
    if len(work.tokens.rows) < 2:
        raise TextError("The text has one row, and another is needed to judge the repair on; give several rows.")
    needed = max(_unknowns(site, work.cut.info.hidden_size) for site in sites)
    given = sum(map(len, work.fitted))
    if given < needed:
        total = sum(map(len, work.tokens.rows))
        raise TextError(
            f"{method} fits {needed:,} numbers for each channel, and {given:,} of the text's {total:,} tokens are "
            f"there to fit on; give at least {-(-needed * total // given):,} tokens."
        )


def _unknowns(site: Site, hidden: int) -> int:
    if site.writer.scale:
        return 1
    return site.writer.inputs if site.reads == "inputs" else hidden


def _fit_sites(work: _Work, sites: Sequence[Site]) -> tuple[Draft, list[Outcome]]:
    """Return a draft with every repair that helps, and what each site gave."""
    total, done = len(work.tokens.rows) * (1 + len(sites)), 0

    def tell(rows: int, detail: str) -> None:
        nonlocal done
        done += rows
        if work.on_progress is not None:
            work.on_progress(Progress(stage="repair", done=done, total=total, unit="rows", detail=detail))

    rows = work.fitted, work.held_out
    draft = open_draft(work.cut, work.base, rows, sites, batch_size=work.batch_size, stop=work.stop, tell=tell)
    return draft, [draft.try_site(site) for site in sites]


def _report(work: _Work, draft: Draft, outcomes: Sequence[Outcome], method: str, seconds: float) -> Repaired:
    kept = [outcome for outcome in outcomes if outcome.applied]
    first = outcomes[0].before
    settings: dict[str, Setting] = {
        "weights": ", ".join(f"{o.layer}.{name}" for o in kept for name in o.fitted.weights),
        "ridge": ", ".join(f"{o.fitted.ridge:.3g}" for o in kept),
        "fit_tokens": outcomes[0].fitted.tokens,
        "held_out_tokens": int(draft.weights.sum()),
        "held_out_nll_cut": draft.mean(first),
        "held_out_nll_repaired": draft.mean(draft.nll),
        "batch_size": work.batch_size,
    }
    treatment = Treatment(
        kind="repair",
        method=method,
        settings=settings,
        text=work.tokens.info,
        seconds=seconds,
        note=_note(draft, outcomes),
    )
    if not kept:
        return Repaired(handle=work.cut, treatment=treatment, applied=False)
    handle = replace(draft.handle, treatments=(*work.cut.treatments, treatment))
    return Repaired(handle=handle, treatment=treatment, applied=True)


def _note(draft: Draft, outcomes: Sequence[Outcome]) -> str:
    """Return what was not applied and why, what is only a scale, and what the held-out rows say."""
    parts = []
    for outcome in outcomes:
        if not outcome.applied:
            parts.append(
                f"Layer {outcome.layer} was left as it was: refitted, the loss on held-out rows would have gone from "
                f"{draft.mean(outcome.before):.4f} to {draft.mean(outcome.after):.4f}."
            )
        elif outcome.site.writer.scale:
            parts.append(
                f"A norm follows the MLP of layer {outcome.layer}: only its scale was refitted, one number a channel."
            )
    if any(outcome.applied for outcome in outcomes):
        parts.append(
            f"Loss on held-out rows {draft.mean(outcomes[0].before):.4f} before, {draft.mean(draft.nll):.4f} after."
        )
    return " ".join(parts)
