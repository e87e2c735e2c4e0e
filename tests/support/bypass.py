"""What pruning must equal: the uncut model with the removed layers bypassed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shortviz.errors import PlanError
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack
from shortviz.records.plan import PrunePlan


@contextmanager
def bypassed(handle: ModelHandle, plan: PrunePlan) -> Iterator[None]:
    """Let each layer of the plan return its input while the context lasts, and hold the handle's lock for as long.

    What pruning must equal. The plan numbers layers as `handle` has them; every hook is gone afterwards.
    """
    if plan.num_layers != handle.info.num_layers:
        raise PlanError(f"The plan is for {plan.num_layers} layers, the model has {handle.info.num_layers}.")
    layers = layer_stack(handle.model).layers
    with handle.lock, ExitStack() as hooks:
        for i in plan.removed:
            hooks.callback(layers[i].register_forward_hook(_return_input, with_kwargs=True).remove)
        yield


def _return_input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    entering = args[0] if args else kwargs["hidden_states"]
    return type(output)((entering, *output[1:])) if isinstance(output, tuple | list) else entering


@torch.no_grad()
def verify_prune(handle: ModelHandle, pruned: ModelHandle, tokens: NDArray[np.int64]) -> float:
    """Return the largest absolute difference of logits, the pruned model against `handle` with the layers bypassed.

    `pruned` was made from `handle` by one or several prunes; `tokens` has shape (batch, length), without padding.
    0.0 is bit-equal; NaN in either model gives NaN.
    """
    before = handle.plan or PrunePlan(num_layers=handle.info.num_layers, removed=())
    after = pruned.plan or before
    stay = set(after.kept)
    plan = PrunePlan(
        num_layers=handle.info.num_layers, removed=tuple(i for i, old in enumerate(before.kept) if old not in stay)
    )
    ids = torch.as_tensor(tokens, device=handle.model.device)
    with bypassed(handle, plan):
        expected = handle.model(input_ids=ids, use_cache=False).logits
    with pruned.lock:
        actual = pruned.model(input_ids=ids, use_cache=False).logits
    return float((actual.double() - expected.double()).abs().max())
