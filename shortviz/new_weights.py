"""A model like another one but for some weights: those are new tensors, all others are shared."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from shortviz.handle import ModelHandle
from shortviz.pruning import prune
from shortviz.records import PrunePlan


def shared_copy(handle: ModelHandle) -> ModelHandle:
    """Return a handle on a new model that shares every tensor; its modules are its own, so weights can be put in."""
    nothing = PrunePlan(num_layers=handle.info.num_layers, removed=())
    return replace(prune(handle, nothing), plan=handle.plan, info=handle.info)


def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Put weights into a model of one's own, as new tensors in the dtype of the old; return the old ones.

    The old tensors are left alone, so a model that shares them does not change.
    """
    old = {name: model.get_parameter(name) for name in weights}
    for name, weight in weights.items():
        # Filled outside inference mode: a tensor born in it could never be trained.
        fresh = nn.Parameter(torch.empty_like(old[name]).copy_(weight), requires_grad=False)
        _set(model, name, fresh)
    return old


def restore_weights(model: nn.Module, old: Mapping[str, nn.Parameter]) -> None:
    """Put the very tensors back that `put_weights` replaced."""
    for name, parameter in old.items():
        _set(model, name, parameter)


def _set(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)
