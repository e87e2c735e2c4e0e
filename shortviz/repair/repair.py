"""Repair: make the layers around a cut fit each other again, in closed form, with a short training if asked.

The layer before a seam is refitted so that what leaves it is what the uncut model had after the removed layers: least
squares on text, in float64, held back by a ridge that is chosen on rows left out of the fit. A repair that does not
lower the end loss on those rows is not applied.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from shortviz.errors import ModelError, PlanError
from shortviz.measure.batches import check_rows
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack
from shortviz.model.placement import refuse_spread
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.ledger import TRAINED, Setting, Treatment
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TokenSet
from shortviz.repair.candidate import SCALE_ONLY, Candidate, Trial, Work, open_candidate
from shortviz.repair.fit import FitTarget
from shortviz.repair.neurons import find_neurons
from shortviz.repair.probe import (
    adding_layers,
    divided_weights,
    find_writers,
    linear_weight,
    open_probe,
    short_recording,
)
from shortviz.repair.training import STEP_ROWS, train

METHODS = ("seam_refit", TRAINED, "linear_fold", "scale")
_TOLERANCE = 1e-3


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
    those that write less (ours, see `pool`); and keeps what is best on the held-out rows. `linear_fold` puts the best
    linear map of what that layer gives behind it (after ReplaceMe, arXiv 2505.02819, but shrinking towards the identity
    and not to 0). Where a norm follows the MLP only its scale is linear, and both refit that. `scale` is one number
    (see `_rescale`).

    `seam_trained` is `seam_refit`, after which all that was refitted is trained for one pass over the rows (ours, see
    `training`): no closed form, and twice the time. Where only a norm's scale was, the linear layers before it learn
    with it. It runs two rows at a time.

    `blocks` are those of the plan whose seams are to be repaired; all if None.

    Memory besides the models: the residual stream of all rows, once for the candidate and once a seam, and `Moments`;
    for a training the stream twice more, and the activations of a step.

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
        batch_size=rows_at_once(method, batch_size),
        watch=watch,
    )
    candidate, trials = _rescale(work) if method == "scale" else _refit(work)
    return _report(work, candidate, trials, time.perf_counter() - began)


def rows_at_once(method: str, batch_size: int) -> int:
    """Return how many rows a repair runs at once: what was asked for, or the rows behind an update of a training."""
    return STEP_ROWS if method == TRAINED else batch_size


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
    fits = trials[:-1] if work.method == TRAINED else trials
    settings: dict[str, Setting] = {
        "weights": ", ".join(dict.fromkeys(name for trial in kept for name in trial.weights)),
        "factor" if work.method == "scale" else "ridge": ", ".join(f"{trial.found:.4g}" for trial in fits),
        "fit_tokens": trials[0].tokens,
        "held_out_tokens": int(candidate.weights.sum()),
        "held_out_nll_cut": candidate.mean(trials[0].before),
        "held_out_nll_repaired": candidate.mean(candidate.nll),
        "batch_size": work.batch_size,
    }
    if work.method == TRAINED:
        settings["training_steps"] = int(trials[-1].found) if trials[-1].applied else 0
    treatment = Treatment(
        kind="repair",
        method=work.method,
        settings=settings,
        text=work.tokens.info,
        seconds=seconds,
        note=_note(candidate, trials),
    )
    repaired = replace(candidate.handle, treatments=(*work.cut.treatments, treatment))
    return Repaired(handle=repaired if kept else work.cut, treatment=treatment, applied=bool(kept))


def _note(candidate: Candidate, trials: Sequence[Trial]) -> str:
    """Return what was not applied and why, what there is to say of the rest, and the loss on held-out rows."""
    parts = []
    for trial in trials:
        if not trial.applied:
            parts.append(
                f"{trial.rejected}, the loss on held-out rows would have gone from "
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


def _refit(work: Work) -> tuple[Candidate, list[Trial]]:
    """Return a candidate with the layer before each seam refitted where that helps, and what each gave.

    Raises PlanError where no layer stands before any of the seams, ModelError where one has nothing to refit, TextError
    for too little text.
    """
    blocks = [block for block in work.blocks if block.start > 0]
    if not blocks:
        raise PlanError(
            "The cut begins at layer 0, so no layer stands before the seam and there is nothing to refit; choose a "
            "block that starts at 1 or later, or heal the cut by training."
        )
    targets = [_fit_target(work, block) for block in blocks]
    for target, block in zip(targets, blocks, strict=True):
        if target.writer.scale and work.method != TRAINED:
            work.watch.say(f"{SCALE_ONLY.format(block.start - 1)} Healing by training reaches more.")
    work.check_enough(max(_unknowns(work, target.alone) for target in targets))
    tokens = sum(map(len, work.fitted))
    targets = [target if tokens >= _unknowns(work, target) else target.alone for target in targets]
    # How often all rows go through a target's layer: for its fits, and for the choice of neurons.
    passes = sum(t.fits if t.neurons is None else 2 * t.fits + 1 + b.n for t, b in zip(targets, blocks, strict=True))
    wanted, first = {target.boundary for target in targets}, targets[0].layer
    if work.method == TRAINED:
        wanted.add(work.base.info.num_layers)
        passes += len(work.plan.kept) - first
    candidate = open_candidate(work, wanted=wanted, first=first, passes=passes)
    if work.method != TRAINED:
        return candidate, [candidate.try_target(target) for target in targets]
    candidate.go_to(first)
    entering = candidate.standing()
    trials = [candidate.try_target(target) for target in targets]
    candidate.go_back(entering)
    trials.append(train(candidate, _to_train(candidate, targets, trials)))
    return candidate, trials


def _to_train(candidate: Candidate, targets: Sequence[FitTarget], trials: Sequence[Trial]) -> list[str]:
    """Return what the refits tried to change; where that is a norm's scale, with all linear layers before the norm."""
    names: list[str] = []
    for target, trial in zip(targets, trials, strict=True):
        inside = [name.partition(".")[2] for name in trial.weights]
        if target.writer.scale:
            modules = candidate.layers[target.layer].named_modules()
            inside += [f"{name}.weight" for name, module in modules if isinstance(module, nn.Linear | Conv1D)]
        names += [f"{target.layer}.{name}" for name in inside]
    return names


def _unknowns(work: Work, target: FitTarget) -> int:
    """Return how many numbers are fitted for each channel."""
    if target.writer.scale:
        return 1
    if target.reads == "outputs":
        return work.cut.info.hidden_size
    layer = layer_stack(work.cut.model).layers[target.layer]
    return sum(linear_weight(layer.get_submodule(name)).shape[1] for name in target.modules)


def _fit_target(work: Work, block: Block) -> FitTarget:
    layer = work.plan.kept.index(block.start - 1)
    with work.cut.lock:
        probe = open_probe(work.cut, layer)
        writers = find_writers(probe)
        if not writers:
            raise ModelError(
                f"Layer {block.start - 1} of {work.cut.info.architecture} ends in a mixture of experts, or in "
                "something else that is not linear, so it cannot be refitted; heal the cut by training instead."
            )
        writer, boundary = writers[0], block.start + block.n
        if work.method == "linear_fold":
            return FitTarget(layer=layer, boundary=boundary, writer=writer, reads="outputs")
        others = tuple(name for name in adding_layers(probe) if name != writer.name)
        return FitTarget(
            layer=layer,
            boundary=boundary,
            writer=writer,
            reads="inputs",
            others=() if writer.scale else others,
            neurons=find_neurons(probe, writer),
        )


def _rescale(work: Work) -> tuple[Candidate, list[Trial]]:
    """Return a candidate with the layers behind each seam scaled where that helps, and what each gave.

    Scale compensation (Prune&Comp, arXiv 2507.18212): one number a seam, without touching the embeddings. a = mean over
    channels of (mean |x^(start+n)| / mean |x^(start)|), means over tokens. The paper multiplies the embeddings and the
    adding layers before the seam by a, which multiplies the logits too where embeddings are tied. Dividing the adding
    layers behind the seam by a is the same to a pre-norm model: its norms forget the stream's size.

    Raises PlanError where no layer stands behind any of the seams, ModelError where layers or final norm do not forget
    the size of the stream, TextError for too little text.
    """
    blocks = [block for block in work.blocks if block.start + block.n < work.plan.num_layers]
    if not blocks:
        raise PlanError(
            "The cut takes the last layer, and the final norm forgets the size of what enters it, so a scale changes "
            "nothing; choose another repair."
        )
    work.check_enough(1)
    names = _adding_layers(work, work.plan.kept.index(blocks[0].start + blocks[0].n))
    wanted = {boundary for block in blocks for boundary in (block.start, block.start + block.n)}
    candidate = open_candidate(work, wanted=wanted, first=0, passes=0)
    _check_tail(work, candidate)
    return candidate, [_try_scale(work, candidate, block, names) for block in blocks]


def _adding_layers(work: Work, first: int) -> dict[int, tuple[str, ...]]:
    """Return the adding layers of each layer from `first` on, in the candidate's numbers."""
    found: dict[int, tuple[str, ...]] = {}
    with work.cut.lock:
        recording = short_recording(work.cut)
        for index in range(first, len(work.plan.kept)):
            found[index] = adding_layers(open_probe(work.cut, index, recording), found.get(index - 1, ()))
    missing = [index for index, names in found.items() if not names]
    if missing:
        raise ModelError(
            f"Layer {work.plan.kept[missing[0]]} of {work.cut.info.architecture} does not forget the size of what it "
            "reads, or adds to the stream by more than linear layers (norms, experts), so it cannot be scaled; choose "
            "another repair."
        )
    return found


@torch.inference_mode()
def _check_tail(work: Work, candidate: Candidate) -> None:
    # What leaves the last layer: embeddings may be so small that the norm's epsilon counts (Qwen2).
    state = candidate.entering(candidate.held_out[0], len(candidate.layers))
    once, half = (candidate.through_tail(size * state) for size in (1.0, 0.5))
    tolerance = max(_TOLERANCE, torch.finfo(once.dtype).eps)  # in half precision one rounding is more
    if not bool(((once - half).abs() <= tolerance * once.abs().amax()).all()):
        raise ModelError(
            f"The final norm of {work.cut.info.architecture} does not forget the size of the stream, so a scale cannot "
            "be put behind the seam; choose another repair."
        )


def _try_scale(work: Work, candidate: Candidate, block: Block, names: dict[int, tuple[str, ...]]) -> Trial:
    sums = [
        torch.stack([s.uncut_states[boundary][s.real].double().abs().sum(0) for s in candidate.fit_on]).sum(0)
        for boundary in (block.start, block.start + block.n)
    ]
    found = float((sums[1] / sums[0].clamp_min(1e-300)).mean())
    kept, after_block = work.plan.kept, block.start + block.n
    weights = {
        f"{index}.{name}": weight
        for index in range(kept.index(after_block), len(kept))
        for name, weight in divided_weights(candidate.layers[index], names[index], found).items()
    }
    before, after = candidate.nll, candidate.nll_with(weights)
    applied = candidate.keep_if_better(weights, after)
    return Trial(
        rejected=f"All from layer {after_block} on was left as it was: its additions divided by {found:.4f}",
        weights=tuple(f"{kept[int(i)]}.{rest}" for i, _, rest in (name.partition(".") for name in weights)),
        found=found,
        tokens=sum(int(s.real.sum()) for s in candidate.fit_on),
        before=before,
        after=after,
        applied=applied,
        remark=f"What the layers from {after_block} on add was divided by {found:.4f}.",
    )
