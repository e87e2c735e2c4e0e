"""Seam refit and linear fold: the layer before a seam made to give what the removed layers gave."""

from shortviz.architectures import layer_stack
from shortviz.errors import ModelError, PlanError
from shortviz.neurons import find_neurons
from shortviz.records import Block
from shortviz.repair_draft import Candidate, Trial
from shortviz.repair_work import Work
from shortviz.residual_writers import find_writers, linear_weight
from shortviz.seam_fit import FitTarget
from shortviz.stream_scale import adding_layers
from shortviz.watching import open_probe


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
    candidate = work.open_candidate(
        wanted={target.boundary for target in targets}, first=targets[0].layer, passes=passes
    )
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
