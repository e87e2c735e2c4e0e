"""Seam refit and linear fold: the layer before a seam made to give what the removed layers gave."""

import torch

from shortviz.errors import ModelError, PlanError
from shortviz.model.layers import layer_stack
from shortviz.records.plan import Block
from shortviz.repair.candidate import Candidate, Trial, Work, open_candidate
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


def refit(work: Work) -> tuple[Candidate, list[Trial]]:
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
    work.check_enough(max(_unknowns(work, target.alone) for target in targets))
    tokens = sum(map(len, work.fitted))
    targets = [target if tokens >= _unknowns(work, target) else target.alone for target in targets]
    passes = sum(_passes(target, block) for target, block in zip(targets, blocks, strict=True))
    wanted = {target.boundary for target in targets}
    candidate = open_candidate(work, wanted=wanted, first=targets[0].layer, passes=passes)
    return candidate, [candidate.try_target(target) for target in targets]


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


def _passes(target: FitTarget, block: Block) -> int:
    """Return how often all rows go through a target's layer: for its fits, and for the choice of neurons."""
    return target.fits if target.neurons is None else 2 * target.fits + 1 + block.n


_TOLERANCE = 1e-3


def rescale(work: Work) -> tuple[Candidate, list[Trial]]:
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
    once, twice = (candidate.through_tail(size * candidate.held_out[0].state) for size in (1.0, 2.0))
    tolerance = max(_TOLERANCE, torch.finfo(once.dtype).eps)  # in half precision one rounding is more
    if bool(((once - twice).abs() > tolerance * once.abs().amax()).any()):
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
        subject=f"All from layer {after_block} on",
        how=f"its additions divided by {found:.4f}",
        weights=tuple(f"{kept[int(i)]}.{rest}" for i, _, rest in (name.partition(".") for name in weights)),
        found=found,
        tokens=sum(int(s.real.sum()) for s in candidate.fit_on),
        before=before,
        after=after,
        applied=applied,
        remark=f"What the layers from {after_block} on add was divided by {found:.4f}.",
    )
