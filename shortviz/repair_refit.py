"""Seam refit and linear fold: the layer before a seam made to give what the removed layers gave."""

from shortviz.errors import ModelError, PlanError
from shortviz.records import Block
from shortviz.repair_draft import Draft, Outcome
from shortviz.repair_work import Work
from shortviz.residual_writers import find_writers
from shortviz.seam_fit import Reads, Site


def refit(work: Work) -> tuple[Draft, list[Outcome]]:
    """Return a draft with the layer before each seam refitted where that helps, and what each gave.

    Raises PlanError where no layer stands before any of the seams, ModelError where one has nothing to refit, TextError
    for too little text.
    """
    blocks = [block for block in work.blocks if block.start > 0]
    if not blocks:
        raise PlanError(
            "The cut begins at layer 0, so no layer stands before the seam and there is nothing to refit; choose a "
            "block that starts at 1 or later, or heal the cut by training."
        )
    sites = [_site(work, block) for block in blocks]
    hidden = work.cut.info.hidden_size
    work.check_enough(max(1 if s.writer.scale else s.writer.inputs if s.reads == "inputs" else hidden for s in sites))
    draft = work.open_draft(wanted={site.boundary for site in sites}, first=sites[0].layer, passes=len(sites))
    return draft, [draft.try_site(site) for site in sites]


def _site(work: Work, block: Block) -> Site:
    layer = work.plan.kept.index(block.start - 1)
    writers = find_writers(work.cut, layer)
    if not writers:
        raise ModelError(
            f"Layer {block.start - 1} of {work.cut.info.architecture} ends in a mixture of experts, or in something "
            "else that is not linear, so it cannot be refitted; heal the cut by training instead."
        )
    reads: Reads = "outputs" if work.method == "linear_fold" else "inputs"
    return Site(layer=layer, boundary=block.start + block.n, writer=writers[0], reads=reads)
