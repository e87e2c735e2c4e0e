"""Running several small batches through a layer at once where that changes no bit of what each gives.

A matrix product of few tokens waits for the weights to come out of memory; with more tokens each weight is used more
often while it is there. Kernels choose their path by shapes and addresses, so every new combination is tried first: a
batch alone and at its place in its group must give equal bits, else the layer runs batch by batch. In narrow floats
equal bits prove nothing, for rounding hides most of what another path does and shows it now and then: there batches
always run one by one.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from shortviz.replay import LayerCall
from shortviz.state_store import BatchShape
from shortviz.weight_reader import ALIGNMENT

FUSED_TOKENS = 512
"""Tokens that go through a layer at once; products of more are hardly faster, and take more memory."""


def fuses(dtype: torch.dtype) -> bool:
    """Tell whether batches may go together in this dtype: whether a trial would show that another path is taken."""
    return dtype.itemsize >= 4


def groups_of(shapes: Sequence[BatchShape], dtype: torch.dtype) -> list[range]:
    """Return which neighbouring batches go together: those of one width, up to FUSED_TOKENS tokens."""
    if not fuses(dtype):
        return [range(index, index + 1) for index in range(len(shapes))]
    groups: list[range] = []
    for index, shape in enumerate(shapes):
        last = groups[-1] if groups else None
        if (
            last is not None
            and shapes[last[0]].width == shape.width
            and sum(shapes[i].tokens for i in last) + shape.tokens <= FUSED_TOKENS
        ):
            groups[-1] = range(last.start, index + 1)
        else:
            groups.append(range(index, index + 1))
    return groups


class FusedRunner:
    """Runs groups of batches through layers; it remembers which shapes were tried."""

    def __init__(self) -> None:
        self._equal: dict[Hashable, bool] = {}

    def run(
        self, layer: nn.Module, states: Sequence[Tensor], calls: Sequence[LayerCall], together: LayerCall | None
    ) -> list[Tensor]:
        """Return the layer's output for each batch of a group, each (rows, tokens, hidden).

        `calls` are what the layer is called with for each batch, `together` for all of them as one batch.
        """
        if together is None or routes(layer):
            return [call.run(layer, state) for call, state in zip(calls, states, strict=True)]
        rows = [len(state) for state in states]
        found = list(together.run(layer, torch.cat(list(states))).split(rows))
        kind, low = _kind(layer, together), 0
        for state, call, part in zip(states, calls, found, strict=True):
            key = (kind, sum(rows), low, state.shape)  # its place counts: kernels treat the last rows otherwise
            low += len(state)
            if key not in self._equal:
                self._equal[key] = torch.equal(call.run(layer, state), part)
            if not self._equal[key]:
                return self.run(layer, states, calls, None)
        return found


def routes(layer: nn.Module) -> bool:
    """Tell whether tokens are sorted to experts: then shapes depend on the tokens, and trying some says nothing."""
    return any("expert" in name or weight.ndim > 2 for name, weight in layer.named_parameters())


def _kind(layer: nn.Module, call: LayerCall) -> Hashable:
    """Return what kernels choose their path by, but for the rows."""
    weights = tuple((name, w.shape, w.data_ptr() % ALIGNMENT) for name, w in layer.named_parameters())
    given = tuple(value.shape if isinstance(value, Tensor) else str(type(value)) for value in call.kwargs.values())
    return type(layer), weights, given
