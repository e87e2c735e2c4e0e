"""Which weights of a model are trained: found by structure and by name inside a layer, for every family."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shortviz.architectures import layer_stack
from shortviz.errors import PlanError

_MIXERS = re.compile(r"att|mamba|mixer|conv|temporal_block|indexer")
"""In a module's path inside a layer: it mixes tokens (attention, state space, convolution)."""
_ROUTERS = re.compile(r"(^|\.|_)(gate|router)$")
"""The end of such a path: it chooses experts; trained on little text it would unlearn that."""
_NOT_ADAPTED = {"out_proj", "conv1d"}
"""Modules of state-space mixers that peft does not adapt (their weights are read without calling them)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """What gets an adapter, as paths inside a layer, e.g. `mlp.down_proj`."""

    modules: tuple[str, ...]
    """Linear layers."""
    parameters: tuple[str, ...]
    """Weights of all experts in one tensor."""
    transposed: bool
    """The linear layers are transformers' Conv1D, (in, out)."""
    note: str = ""
    """A sentence for people."""


def find_targets(model: PreTrainedModel, wanted: str) -> Targets:
    """Return what `wanted` names: `mlp`, `all`, or names of modules inside a layer, separated by commas.

    Raises PlanError where a name is not there, or there is nothing of the kind.
    """
    found = dict(_linears(model))
    experts = set(_expert_weights(model))
    paths = (*found, *sorted(experts))
    note = ""
    if wanted == "all":
        chosen = [path for path in paths if not _refused(path)]
    elif wanted == "mlp":
        chosen = [path for path in paths if not _MIXERS.search(path)]
        if not chosen:
            chosen = [path for path in paths if not _refused(path)]
            note = f"The layers have no MLP; {', '.join(chosen)} of their mixers were trained."
    else:
        chosen = _named(wanted, paths)
    if not chosen:
        raise PlanError(f"The layers of {type(model).__name__} have nothing that {wanted!r} could name; choose all.")
    modules = tuple(path for path in chosen if path in found)
    kinds = {issubclass(found[path], Conv1D) for path in modules}
    return Targets(
        modules=modules,
        parameters=tuple(path for path in chosen if path in experts),
        transposed=kinds == {True},
        note=note,
    )


def _refused(path: str) -> bool:
    return bool(_MIXERS.search(path)) and path.rpartition(".")[2] in _NOT_ADAPTED and "att" not in path


def _named(wanted: str, paths: tuple[str, ...]) -> list[str]:
    chosen: list[str] = []
    for name in (part.strip() for part in wanted.split(",")):
        here = [path for path in paths if name and (path == name or path.endswith(f".{name}"))]
        if not here:
            raise PlanError(f"The layers have nothing named {name!r} to train; they have {', '.join(paths)}.")
        chosen += [path for path in here if path not in chosen]
    return chosen


def _linears(model: PreTrainedModel) -> Iterator[tuple[str, type[Any]]]:
    """Yield (path inside a layer, class) of each kind of linear layer, once; routers are left out."""
    seen = set()
    for layer in layer_stack(model).layers:
        for path, module in layer.named_modules():
            if path in seen or not isinstance(module, nn.Linear | Conv1D) or _ROUTERS.search(path):
                continue
            if isinstance(module, nn.Linear) and module.out_features == 1:
                continue
            seen.add(path)
            yield path, type(module)


def _expert_weights(model: PreTrainedModel) -> Iterator[str]:
    """Yield the paths inside a layer of weights that hold all experts in one tensor, (experts, ., .), once each."""
    seen = set()
    for layer in layer_stack(model).layers:
        for path, weight in layer.named_parameters():
            if weight.ndim == 3 and "expert" in path and path not in seen:
                seen.add(path)
                yield path


def last_part(model: PreTrainedModel, last_layers: int) -> dict[str, nn.Parameter]:
    """Return the weights that partial fine-tuning trains, by name: last layers, final norm, and the head if it is free.

    A head that is tied to the input embeddings stays as it is: training it would move every token's first state.

    Raises PlanError where the model has fewer layers.
    """
    stack = layer_stack(model)
    count = len(stack.layers)
    if last_layers > count:
        raise PlanError(f"The last {last_layers} layers were to be trained, and the model has {count}; choose fewer.")
    layers = {f"{stack.path}.{i}." for i in range(count)}
    trained = {f"{stack.path}.{i}." for i in range(count - last_layers, count)}
    embeddings = {id(weight) for weight in model.get_input_embeddings().parameters()}
    head = model.get_output_embeddings()
    heads = {id(weight) for weight in head.parameters()} - embeddings if head is not None else set()
    norms = {id(w) for m in _final_norms(stack.decoder) for w in m.parameters(recurse=False)}
    chosen = {}
    for name, weight in model.named_parameters():
        inside = next((prefix for prefix in layers if name.startswith(prefix)), None)
        if inside in trained or (inside is None and (id(weight) in heads or id(weight) in norms)):
            chosen[name] = weight
    return chosen


def _final_norms(decoder: nn.Module) -> list[nn.Module]:
    """Return the norms that stand beside the layers, short of one on the embeddings (bloom)."""
    named = decoder.named_children()
    return [child for name, child in named if "norm" in type(child).__name__.lower() and "embed" not in name]
