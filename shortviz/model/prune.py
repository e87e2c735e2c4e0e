"""prune: a new, smaller model that shares the tensors of the one it comes from.

The pruned model is built from its own config, exactly as `from_pretrained` will build it from the exported checkpoint,
so that what is previewed is what is exported. The original model is never edited.
"""

import copy
import math
from collections.abc import Mapping, Set
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from shortviz.errors import PlanError
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import illegal_blocks, kept_parts, layer_stack, pruned_config, rename_state
from shortviz.model.load import weight_size
from shortviz.model.placement import place_like
from shortviz.records.model import ModelInfo
from shortviz.records.plan import PrunePlan


def prune(handle: ModelHandle, plan: PrunePlan) -> ModelHandle:
    """Return a handle on a new model without the plan's layers, sharing every tensor that stays.

    The one exception are tables that pack a part of every layer (`layers.packed_axis`): the kept parts are copied.

    The plan numbers layers as `handle` has them; the new handle's `plan` numbers them as the model that was loaded had
    them. The original handle is untouched, and both together take the memory of one (and of such tables).

    Raises:
        PlanError: the plan is for another number of layers, or the stock config cannot express it (field named).
    """
    original = handle.model
    config = pruned_config(original.config, plan)
    path = layer_stack(original).path
    model = empty_model(original, config)
    state = original.state_dict()
    names = rename_state(state, plan, path)
    empty = model.state_dict()
    _fill(model, {n: kept_parts(original.config, state[o], empty.get(n, state[o]), plan) for n, o in names.items()})
    model.tie_weights()
    _fill_computed(original, model, plan, path)
    model.generation_config = copy.deepcopy(original.generation_config)
    model.requires_grad_(False).eval()
    place_like(original, model, plan, path)
    return ModelHandle(
        model=model,
        tokenizer=handle.tokenizer,
        info=pruned_info(handle.info, model, plan),
        ref=handle.ref,
        folder=handle.folder,
        plan=_composed(handle.plan, plan),
        treatments=handle.treatments,
    )


def empty_model(like: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model of the same class with nothing in it: every tensor on meta.

    The device context is this thread's own; accelerate's init_empty_weights patches torch for all threads, and two
    jobs that build at once would leave it patched. For the same reason the default dtype is not touched.
    """
    with torch.device("meta"):
        model = type(like)._from_config(config, dtype=None, attn_implementation=like.config._attn_implementation)
    model.config.dtype = like.config.dtype
    for part in config.sub_configs:
        if getattr(config, part, None) is not None:
            getattr(model.config, part).dtype = getattr(like.config, part).dtype
    return model


def _fill(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Put these very tensors into the model; all that it has, and nothing else."""
    empty = model.state_dict()
    has, given = empty.keys(), weights.keys()
    odd = sorted(has ^ given) or sorted(name for name, weight in weights.items() if weight.shape != empty[name].shape)
    if odd:
        raise PlanError(
            f"These layers cannot be removed: layers of this model do not have the same weights everywhere "
            f"({odd[0]} is {_odd(odd[0], has, given)}); choose other layers."
        )
    model.load_state_dict(weights, strict=True, assign=True)


def _odd(name: str, has: Set[str], given: Set[str]) -> str:
    return "of another shape" if name in has and name in given else "missing" if name in has else "left over"


def _fill_computed(original: PreTrainedModel, model: PreTrainedModel, plan: PrunePlan, path: str) -> None:
    """Give the new model the buffers that no state dict holds, e.g. rotary frequencies.

    A module without weights computes them from the new config, as `from_pretrained` will: granite_swa has one rotary
    module for each frequency base still in use, so the same name may mean another base. The original's tensor is
    shared wherever it holds the same values, or belongs to a module with weights.
    """
    theirs = dict(original.named_buffers())
    old_names = rename_state(theirs, plan, path)
    for name, module in model.named_modules():
        leaves = [leaf for leaf in module._non_persistent_buffers_set if module._buffers.get(leaf) is not None]
        computed = _computed_buffers(model, module, leaves) if next(module.parameters(), None) is None else {}
        for leaf in leaves:
            old = theirs.get(old_names.get(f"{name}.{leaf}", ""))
            new = computed.get(leaf)
            if new is not None and (old is None or old.shape != new.shape or not _close(new, old)):
                module._buffers[leaf] = new.to(original.device)
            elif old is not None:
                module._buffers[leaf] = old
    empty = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if empty:
        raise PlanError(f"This model cannot be cut: {empty[0]} is neither a weight nor computed; choose another model.")


@torch.no_grad()
def _computed_buffers(model: PreTrainedModel, module: nn.Module, leaves: list[str]) -> dict[str, torch.Tensor]:
    """Return the floating-point buffers that transformers computes for a module without weights."""
    buffers = {leaf: buffer for leaf, buffer in module.named_buffers(recurse=False) if leaf in leaves}
    floats = [leaf for leaf, buffer in buffers.items() if buffer.is_floating_point()]
    for leaf in floats:
        module._buffers[leaf] = torch.full_like(buffers[leaf], math.nan, device="cpu")
    if floats:
        model._init_weights(module)
    found = {leaf: buffer for leaf, buffer in module.named_buffers(recurse=False) if leaf in floats}
    return {leaf: buffer for leaf, buffer in found.items() if not bool(buffer.isnan().any())}


def _close(new: torch.Tensor, old: torch.Tensor) -> bool:
    """Tell whether the values agree to the precision of the original's dtype."""
    tolerance = 4 * torch.finfo(old.dtype).eps
    return torch.allclose(new.to(old.dtype).double(), old.cpu().double(), rtol=tolerance, atol=0.0, equal_nan=True)


def pruned_info(info: ModelInfo, model: PreTrainedModel, plan: PrunePlan) -> ModelInfo:
    """Return the facts of a model that was pruned by a plan, from those of the one it comes from."""
    parameters, num_bytes = weight_size(model)
    return replace(
        info,
        num_layers=len(plan.kept),
        parameters=parameters,
        bytes=num_bytes,
        layer_parameters=tuple(info.layer_parameters[i] for i in plan.kept),
        layer_bytes=tuple(info.layer_bytes[i] for i in plan.kept),
        layer_cache_bytes=tuple(info.layer_cache_bytes[i] for i in plan.kept),
        illegal=illegal_blocks(model.config) if plan.removed else info.illegal,
    )


def _composed(before: PrunePlan | None, plan: PrunePlan) -> PrunePlan:
    """Return both removals as one plan in the numbers of the loaded model."""
    if before is None:
        return plan
    removed = {*before.removed, *(before.kept[i] for i in plan.removed)}
    return PrunePlan(num_layers=before.num_layers, removed=tuple(sorted(removed)))


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
