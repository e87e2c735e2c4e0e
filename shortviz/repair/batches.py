"""Two models on the same text, side by side: the uncut one's boundaries, and a candidate for the repaired one.

The uncut model runs once over every batch. Its boundaries at the seams are kept, and how its layers were called; the
candidate's layers are then called in the same way, one after another, with whatever weights they have by then. That way
a seam further on sees what the repaired layers before it really give, and no layer runs twice.
"""

from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shortviz.measure.batches import padded_right
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import LayerCall, hidden_argument, hooked_layers, layer_stack
from shortviz.records.text import Tokens
from shortviz.repair.probe import hooked_modules

STOPPED = "Stopped before the repair was finished; the cut model is as it was."


@dataclass(kw_only=True, slots=True, eq=False)
class PairedBatch:
    """One batch of rows in both models."""

    ids: Tensor
    """(rows, tokens), padded right."""
    real: Tensor
    """(rows, tokens): False where there is padding."""
    uncut_states: dict[int, Tensor]
    """Boundaries of the uncut model, (rows, tokens, hidden) each."""
    calls: list[LayerCall]
    """How the uncut model calls its layers."""
    state: Tensor
    """The candidate's residual stream where it stands now, (rows, tokens, hidden)."""


class _ReachedError(Exception):
    """Ends a forward pass that has gone far enough."""


@torch.inference_mode()
def open_paired_batch(base: ModelHandle, rows: Sequence[Tokens], wanted: Set[int], start: int, end: int) -> PairedBatch:
    """Return a batch with the uncut model's wanted boundaries and first `end` calls, the candidate at boundary `start`.

    The uncut model runs up to boundary `end`.
    """
    ids = padded_right(rows)
    real = torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])
    stack, device = layer_stack(base.model), base.model.device
    kept: dict[int, Tensor] = {}
    calls: list[LayerCall] = []

    def keep(boundary: int, hidden: Tensor) -> None:
        if boundary in wanted or boundary == start:
            kept[boundary] = hidden.clone()
        if boundary == end:
            raise _ReachedError

    def enters(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(index, hidden_argument(index, args, kwargs))
        calls.append(LayerCall.of(args, kwargs))

    hooks = hooked_layers(stack.layers, enters, lambda hidden: keep(len(stack.layers), hidden))
    with base.lock, suppress(_ReachedError), hooks:
        stack.decoder(input_ids=ids.to(device), use_cache=False)
    return PairedBatch(ids=ids.to(device), real=real.to(device), uncut_states=kept, calls=calls, state=kept[start])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProbedModules:
    """What some modules of a candidate's layer read and gave on a batch, real tokens only."""

    entered: list[Tensor]
    """What each module read, (tokens, features)."""
    left: Tensor
    """What the last module gave, (tokens, hidden)."""
    output: Tensor
    """What left the layer, (tokens, hidden)."""


@torch.inference_mode()
def probe_modules(layer: nn.Module, modules: Sequence[str], batch: PairedBatch, call: LayerCall) -> ProbedModules:
    """Run a candidate's layer on the batch as it stands, and return what its modules read and gave; the batch stays."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str, args: tuple[Any, ...], output: Tensor) -> None:
        seen[name] = args[0].clone(), output.clone()  # clones: falcon adds to the output in place afterwards

    with hooked_modules(layer, modules, keep):
        output = call.run(layer, batch.state.clone())
    shape = (*batch.real.shape, -1)
    entered = [seen[name][0].view(shape)[batch.real] for name in modules]
    left = seen[modules[-1]][1].view(shape)[batch.real]
    return ProbedModules(entered=entered, left=left, output=output[batch.real])
