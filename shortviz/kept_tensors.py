"""Which tensors of a checkpoint's files stay when layers are removed, and under what names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from shortviz import loading
from shortviz.architectures import layer_stack
from shortviz.errors import PlanError
from shortviz.records import PrunePlan
from shortviz.shards import Entry, twice_there
from shortviz.streamed_parts import model_names


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptTensors:
    """What the files of the pruned checkpoint will hold."""

    tensors: Mapping[str, Entry]
    """By new name, in the order of the model."""
    path: str
    """Where the files keep the layers, e.g. `model.layers`."""
    notes: tuple[str, ...] = ()
    """Sentences about tensors that were left out beside the removed layers."""


def kept_tensors(
    model: PreTrainedModel, name: str, entries: Mapping[str, Entry], plan: PrunePlan, *, quantised: bool = False
) -> KeptTensors:
    """Return the tensors that stay, with the layers renumbered; `model` is the uncut one, on meta.

    Tensors of layers that the config does not count (prediction heads), constants of old versions, and what repeats the
    tensor it is tied to are left out.
    Raises ModelError where a file holds what the config does not describe (scales of `quantised` weights may be there),
    PlanError where the files do not keep the layers under one name.
    """
    names, known = model_names(model, entries, get_model_conversion_mapping(model)), model.state_dict()
    order = {key: place for place, key in enumerate(known)}
    path = file_path(names, known, layer_stack(model).path)
    layer = re.compile(rf"{re.escape(path)}\.(\d+)\.")
    ignored = [re.compile(pattern) for pattern in (model._keys_to_ignore_on_load_unexpected or ())]
    ignored.append(loading.OLD_BUFFERS)
    numbers = {old: new for new, old in enumerate(plan.kept)}
    again = twice_there(model.all_tied_weights_keys, {names[key]: key for key in entries}, entries, name)
    kept: dict[str, Entry] = {}
    strange: set[str] = set()
    heads: set[int] = set()
    for key in sorted(entries, key=lambda key: (order.get(names[key], len(order)), _natural(key))):
        found = layer.match(key)
        number = int(found.group(1)) if found else None
        if number is not None and number >= plan.num_layers:
            heads.add(number)
        elif key in again or (names[key] not in known and any(pattern.search(names[key]) for pattern in ignored)):
            continue
        elif names[key] not in known and not quantised:
            strange.add(names[key])
        elif found is None:
            kept[key] = entries[key]
        elif number in numbers:
            kept[f"{path}.{numbers[number]}.{key[found.end() :]}"] = entries[key]
    loading.refuse_disagreement(name, {"missing_keys": (), "unexpected_keys": strange, "mismatched_keys": ()})
    listed = ", ".join(map(str, sorted(heads)))
    notes = (
        (f"Tensors of layers beyond the config's count ({listed}; prediction heads) are left out.",) if heads else ()
    )
    return KeptTensors(tensors=kept, path=path, notes=notes)


def file_path(names: Mapping[str, str], known: Mapping[str, object], path: str) -> str:
    """Return where the files keep the layers, found by the tensors whose layer is known; raises PlanError."""
    layer = re.compile(rf"{re.escape(path)}\.(\d+)\.")
    found = set()
    for key, target in names.items():
        number = layer.match(target) if target in known else None
        if number is not None:
            place = re.match(rf"((?:[^.]+\.)*?){number.group(1)}\.", key)
            found.add(place.group(1).removesuffix(".") if place else "")
    if len(found) != 1 or "" in found:
        places = ", ".join(sorted(found)) or "no name"
        raise PlanError(f"The files keep the layers under {places}, not under one name; prune without --stream.")
    return found.pop()


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in key.split(".")]
