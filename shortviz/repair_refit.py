"""Seam refit and linear fold: the layer before a seam made to give what the removed layers gave."""

from shortviz.architectures import layer_stack
from shortviz.errors import ModelError, PlanError
from shortviz.neurons import find_neurons
from shortviz.records import Block
from shortviz.repair_draft import Draft, Outcome
from shortviz.repair_work import Work
from shortviz.residual_writers import find_writers, linear_weight
from shortviz.seam_fit import Site
from shortviz.stream_scale import adding_layers
from shortviz.watching import open_probe


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
    work.check_enough(max(_unknowns(work, site.alone) for site in sites))
    tokens = sum(map(len, work.fitted))
    sites = [site if tokens >= _unknowns(work, site) else site.alone for site in sites]
    passes = sum(_passes(site, block) for site, block in zip(sites, blocks, strict=True))
    draft = work.open_draft(wanted={site.boundary for site in sites}, first=sites[0].layer, passes=passes)
    return draft, [draft.try_site(site) for site in sites]


def _unknowns(work: Work, site: Site) -> int:
    """Return how many numbers are fitted for each channel."""
    if site.writer.scale:
        return 1
    if site.reads == "outputs":
        return work.cut.info.hidden_size
    layer = layer_stack(work.cut.model).layers[site.layer]
    return sum(linear_weight(layer.get_submodule(name)).shape[1] for name in site.modules)


def _site(work: Work, block: Block) -> Site:
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
            return Site(layer=layer, boundary=boundary, writer=writer, reads="outputs")
        others = tuple(name for name in adding_layers(probe) if name != writer.name)
        return Site(
            layer=layer,
            boundary=boundary,
            writer=writer,
            reads="inputs",
            others=() if writer.scale else others,
            neurons=find_neurons(probe, writer),
        )


def _passes(site: Site, block: Block) -> int:
    """Return how often all rows go through a site's layer: for its fits, and for the choice of neurons."""
    return site.fits if site.neurons is None else 2 * site.fits + 1 + block.n
