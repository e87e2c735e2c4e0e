"""Linear replacement: one explicit linear layer where the block was, the seed library's idea made to run.

It is no part of a stock model, so it can be measured and talked to but not exported: between the layers of a pre-norm
model stands the residual stream itself, and no weight of a stock layer multiplies it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from shortviz.records import Block
from shortviz.repair_draft import Draft, Outcome
from shortviz.repair_work import Work
from shortviz.seam_fit import RIDGES
from shortviz.seam_moments import Moments
from shortviz.seam_streams import STOPPED, Stream


class Replaced(nn.Module):
    """A decoder layer with an explicit linear layer in front of it, or behind it where it is the last."""

    def __init__(self, layer: nn.Module, linear: nn.Linear, *, behind: bool) -> None:
        super().__init__()
        self.layer = layer
        self.linear = linear
        self.behind = behind

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer gives of the mapped stream, or the mapped stream of what it gives."""
        if not self.behind:
            return self.layer(self._mapped(hidden_states), *args, **kwargs)
        output = self.layer(hidden_states, *args, **kwargs)
        return (self._mapped(output[0]), *output[1:]) if isinstance(output, tuple) else self._mapped(output)

    def _mapped(self, stream: Tensor) -> Tensor:
        """Return the mapped stream in its own dtype: some families keep it wider than their weights."""
        mapped: Tensor = self.linear(stream.to(self.linear.weight.dtype))
        return mapped.to(stream.dtype)

    def __getattr__(self, name: str) -> Any:
        """Return the layer's own attributes: models ask their layers for an attention type, for instance."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def replace_linear(work: Work) -> tuple[Draft, list[Outcome]]:
    """Return a draft with a linear layer in each block's place where that helps, and what each gave.

    Raises TextError for too little text.
    """
    blocks = work.blocks
    work.check_enough(work.cut.info.hidden_size)
    places = [_place(work, block) for block in blocks]
    draft = work.open_draft(wanted={b.start + b.n for b in blocks}, first=min(places), passes=len(blocks))
    return draft, [_try_block(draft, block, place) for block, place in zip(blocks, places, strict=True)]


def _place(work: Work, block: Block) -> int:
    """Return the draft's layer that the block stood before; the number of layers where it was at the end."""
    after = block.start + block.n
    return work.plan.kept.index(after) if after < work.plan.num_layers else len(work.plan.kept)


def _try_block(draft: Draft, block: Block, place: int) -> Outcome:
    behind = place == len(draft.layers)
    where = place - behind
    draft.go_to(where)
    layer = draft.layers[where]
    fit_on, held_out = (_moments(draft, s, block, layer if behind else None) for s in (draft.fit_on, draft.held_out))
    tried = [(held_out.missed(solution), ridge, solution) for ridge in RIDGES for solution in [fit_on.solve(ridge)]]
    _, ridge, solution = min(tried, key=lambda found: found[0])
    draft.layers[where] = Replaced(layer, _linear(layer, solution), behind=behind)
    before, after = draft.nll, draft.judge()
    applied = draft.mean(after) < draft.mean(before)
    if applied:
        draft.nll = after
    else:
        draft.layers[where] = layer
    last = block.start + block.n - 1
    return Outcome(
        subject=f"The place of layers {block.start}-{last}" if block.n > 1 else f"The place of layer {block.start}",
        how="with a linear layer in it",
        weights=(f"linear layer in place of {block}",),
        found=ridge,
        tokens=fit_on.tokens,
        before=before,
        after=after,
        applied=applied,
        remark=f"A linear layer stands in place of {block}: no stock model has one there, so this is not exportable.",
    )


@torch.inference_mode()
def _moments(draft: Draft, streams: list[Stream], block: Block, layer: nn.Module | None) -> Moments:
    """Return the moments of the stream at the seam; behind the last layer, `layer` is run first."""
    boundary, state = block.start + block.n, streams[0].state
    moments = Moments.zeros((state.shape[-1],), state.shape[-1], bias=True, device=state.device)
    for stream in streams:
        draft.watch.check(STOPPED)
        here = stream.state
        if layer is not None:
            here = stream.calls[draft.numbers[-1]].run(layer, here.clone())
        reached = stream.targets[boundary]
        moments.add(here[stream.real], (reached - here)[stream.real], reached[stream.real])
        draft.tell(len(stream.ids), f"the place of {block}")
    return moments


def _linear(layer: nn.Module, solution: Tensor) -> nn.Linear:
    """Return the map x -> x + x solution + constant in the layer's dtype and on its device."""
    like = next(layer.parameters())
    hidden = solution.shape[1]
    linear = nn.Linear(hidden, hidden, device=like.device, dtype=like.dtype)
    weight = torch.eye(hidden, dtype=torch.float64) + solution[:hidden].cpu()
    with torch.no_grad():
        linear.weight.copy_(weight.T)
        linear.bias.copy_(solution[hidden].cpu())
    return linear.requires_grad_(False).eval()
