"""Filling a part of a model on meta from the weight files, with transformers' own loader.

Renamings, merged experts, the dtype plan and the computed buffers are those of `from_pretrained`, so a part holds bit
for bit what the whole model would hold there.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as transformers_init
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from shortviz import loading
from shortviz.architectures import LayerStack
from shortviz.placement import Placement
from shortviz.shards import Entry, twice_there
from shortviz.weight_reader import ALIGNMENT, WeightReader

NON_LAYER = ""
"""The part of the decoder outside its layers; other parts are called by their prefix, e.g. `model.layers.3.`."""
HEAD = "head"
"""The part that makes logits, where it is not tied to the embeddings."""


class Parts:
    """Reads the weights of a part of the model out of the files."""

    def __init__(
        self, model: PreTrainedModel, stack: LayerStack, entries: Mapping[str, Entry], placement: Placement, name: str
    ) -> None:
        self._model, self._stack, self._device = model, stack, placement.device
        self._name = name
        mapping = get_model_conversion_mapping(model)
        self._config = LoadStateDictConfig(
            dtype=placement.dtype,
            dtype_plan=model._get_dtype_plan(placement.dtype),
            weight_mapping=mapping,
            device_map=None if placement.device.type == "cpu" else {"": placement.device},
        )
        self._groups = grouped(model, stack, entries, mapping, name)
        self._reader = WeightReader(entries, placement.dtype, placement.device)

    def release(self) -> None:
        """Give back memory that no part holds any more."""
        self._reader.release()

    @torch.inference_mode(mode=False)
    def fill(self, part: str, modules: Sequence[nn.Module], *, aligned: bool = False) -> None:
        """Load the weights of a part into its modules, and compute the buffers that no file holds.

        Weights lie at the addresses (modulo 64) of a mapped file, as `from_pretrained` leaves them; at 0 if `aligned`.
        Raises ModelError where a weight is missing or has another shape, NumericsError where one is not finite.
        """
        self._reader.suspicious = False
        weights = {key: self._reader.later(key, aligned=aligned) for key in self._groups[part]}
        info, _ = convert_and_load_state_dict_in_model(self._model, weights, self._config)
        if part == NON_LAYER:
            self._model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
        names = {key for key in info.missing_keys if self._is_of(key, part)}
        loading.refuse_disagreement(
            self._name, {"missing_keys": names, "unexpected_keys": (), "mismatched_keys": info.mismatched_keys}
        )
        for module in modules:
            compute_buffers(self._model, self._stack, module, self._device)
            module.requires_grad_(False)
            if aligned:
                align(module)
            if self._reader.suspicious:
                place = name_of(self._model, module)
                named = ((f"{place}.{name}", weight) for name, weight in module.named_parameters())
                loading.refuse_not_finite_among(named, self._stack.path)

    def _is_of(self, key: str, part: str) -> bool:
        """Tell whether a weight of the model has to come with the part; one that is tied comes with its partner."""
        if part != HEAD:
            return part_of(key, self._stack.path) == part
        head = name_of(self._model, self._model.get_output_embeddings())
        return key.startswith(f"{head}.") and key not in self._model.all_tied_weights_keys


def align(module: nn.Module) -> None:
    """Move what is not at an address that is 0 modulo 64 (what a merge left, tied views) to one."""
    for weight in (*module.parameters(), *module.buffers()):
        if weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()


def name_of(model: nn.Module, module: nn.Module | None) -> str:
    """Return the module's name in the model; empty for none."""
    return next((name for name, found in model.named_modules() if found is module), "")


def part_of(key: str, path: str) -> str | None:
    """Return the part that a weight of the model belongs to; None outside the decoder (the head, other towers)."""
    found = re.match(rf"{re.escape(path)}\.\d+\.", key)
    if found:
        return found.group()
    outer = path.rpartition(".")[0]
    return NON_LAYER if key.startswith(f"{outer}.") or not outer else None


def grouped(
    model: PreTrainedModel, stack: LayerStack, entries: Mapping[str, Entry], mapping: Sequence[Any], name: str
) -> dict[str, list[str]]:
    """Return {part: names in the files of its tensors}; raises ModelError where a file holds what no part has."""
    renamed, count = model_names(model, entries, mapping), len(stack.layers)
    parts = (NON_LAYER, HEAD, *(f"{stack.path}.{i}." for i in range(count)))
    groups: dict[str, list[str]] = {part: [] for part in parts}
    head = name_of(model, model.get_output_embeddings())
    known = model.state_dict().keys()
    for key, target in renamed.items():
        part = HEAD if head and target.startswith(f"{head}.") else part_of(target, stack.path)
        if target in known and part is not None:
            groups[part].append(key)
    # A tied weight may be in the file under the name of its partner only, such as the head's.
    of_target = {target: key for key, target in renamed.items()}
    again = twice_there(model.all_tied_weights_keys, of_target, entries, name)
    for target, source in model.all_tied_weights_keys.items():
        for here, there in ((source, target), (target, source)):
            if here not in of_target and there in of_target and part_of(here, stack.path) == NON_LAYER:
                groups[NON_LAYER].append(of_target[there])
    groups[HEAD] = [key for key in groups[HEAD] if key not in groups[NON_LAYER]]
    unexpected = {target for target in renamed.values() if target not in known}
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    unexpected = {key for key in unexpected if not any(pattern.search(key) for pattern in ignored)}
    loading.refuse_disagreement(name, {"missing_keys": (), "unexpected_keys": unexpected, "mismatched_keys": ()})
    return {part: [key for key in dict.fromkeys(keys) if key not in again] for part, keys in groups.items()}


def model_names(model: PreTrainedModel, entries: Iterable[str], mapping: Sequence[Any]) -> dict[str, str]:
    """Return {name in the files: name in the model}; of a tensor that is merged with others, the merged one's name."""
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    known: dict[str, Tensor] = model.state_dict()
    found = {}
    for key in entries:
        target, _ = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
        if target not in known and key in known:
            target, _ = rename_source_key(key, [], [], model.base_model_prefix, known)
        found[key] = target
    return found


@torch.no_grad()
@transformers_init.guard_torch_init_functions()  # type: ignore[untyped-decorator]
def compute_buffers(model: PreTrainedModel, stack: LayerStack, module: nn.Module, device: torch.device) -> None:
    """Compute the buffers that no file holds (rotary frequencies, masks), as from_pretrained does after loading."""
    # The innermost model around the layers knows how their buffers are computed.
    owner = stack.decoder if isinstance(stack.decoder, PreTrainedModel) else model
    for part in module.modules():
        for leaf in part._non_persistent_buffers_set:
            buffer = part._buffers.get(leaf)
            if buffer is not None:
                part._buffers[leaf] = torch.empty_like(buffer, device=device)
        owner._init_weights(part)  # weights that were loaded are marked, and are left alone
    owner._init_weights(owner)  # falcon_h1's model fills a buffer of its layers; those on meta take no notice
