"""Scale compensation (Prune&Comp, arXiv 2507.18212): one number a seam, without touching the embeddings.

a = mean over channels of (mean |x^(start+n)| / mean |x^(start)|), means over tokens. The paper multiplies the
embeddings and the adding layers before the seam by a, which multiplies the logits too where embeddings are tied.
Dividing the adding layers behind the seam by a is the same to a pre-norm model: its norms forget the stream's size.
"""

import torch
from torch import Tensor

from shortviz.errors import ModelError, PlanError
from shortviz.records import Block
from shortviz.repair_draft import Candidate, Trial
from shortviz.repair_work import Work
from shortviz.stream_scale import adding_layers, divided_weights
from shortviz.watching import open_probe, short_recording

_TOLERANCE = 1e-3


def rescale(work: Work) -> tuple[Candidate, list[Trial]]:
    """Return a candidate with the layers behind each seam scaled where that helps, and what each gave.

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
    candidate = work.open_candidate(wanted=wanted, first=0, passes=0)
    _check_tail(work, candidate)
    return candidate, [_try_block(work, candidate, block, names) for block in blocks]


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
    state = candidate.held_out[0].state
    ends = []
    for size in (1.0, 2.0):
        end: Tensor = size * state
        for module in candidate.end_loss.tail:
            end = module(end)
        ends.append(end)
    tolerance = max(_TOLERANCE, torch.finfo(ends[0].dtype).eps)  # in half precision one rounding is more
    if bool(((ends[0] - ends[1]).abs() > tolerance * ends[0].abs().amax()).any()):
        raise ModelError(
            f"The final norm of {work.cut.info.architecture} does not forget the size of the stream, so a scale cannot "
            "be put behind the seam; choose another repair."
        )


def factor(candidate: Candidate, block: Block) -> float:
    """Return the mean over channels of how much larger the stream is behind the block than before it."""
    sums = [
        torch.stack([s.uncut_states[boundary][s.real].double().abs().sum(0) for s in candidate.fit_on]).sum(0)
        for boundary in (block.start, block.start + block.n)
    ]
    return float((sums[1] / sums[0].clamp_min(1e-300)).mean())


def _try_block(work: Work, candidate: Candidate, block: Block, names: dict[int, tuple[str, ...]]) -> Trial:
    found = factor(candidate, block)
    first = work.plan.kept.index(block.start + block.n)
    weights = {
        f"{index}.{name}": weight
        for index in range(first, len(work.plan.kept))
        for name, weight in divided_weights(candidate.layers[index], names[index], found).items()
    }
    before, after = candidate.nll, candidate.nll_with(weights)
    applied = candidate.keep_if_better(weights, after)
    kept = work.plan.kept
    return Trial(
        subject=f"All from layer {block.start + block.n} on",
        how=f"its additions divided by {found:.4f}",
        weights=tuple(f"{kept[int(i)]}.{rest}" for i, _, rest in (name.partition(".") for name in weights)),
        found=found,
        tokens=sum(int(s.real.sum()) for s in candidate.fit_on),
        before=before,
        after=after,
        applied=applied,
        remark=f"What the layers from {block.start + block.n} on add was divided by {found:.4f}.",
    )
