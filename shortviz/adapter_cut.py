"""Which cut of which model an adapter belongs to, and the repairs of that cut that its folder brings along."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from shortviz.errors import ModelError
from shortviz.handle import ModelHandle
from shortviz.ledger import Treatment
from shortviz.model_card import hub_name
from shortviz.new_weights import put_weights, shared_copy
from shortviz.own_weights import delta_weights, weights_digest
from shortviz.record_json import from_plain
from shortviz.records import PrunePlan
from shortviz.words import layers_text

REPAIRED = "repaired.safetensors"
"""Beside an adapter that was trained on a repaired cut: the weights that the repairs made. peft does not look at it."""


def repaired_weights(cut: ModelHandle, base: ModelHandle) -> dict[str, Tensor]:
    """Return the weights of a repaired cut that are not the uncut model's, on the CPU.

    None where it was trained before: those are many, and such a model is exported whole.
    """
    if not cut.treatments or any(treatment.kind != "repair" for treatment in cut.treatments):
        return {}
    return {name: weight.detach().cpu().contiguous() for name, weight in delta_weights(cut, base).items()}


def with_repairs(cut: ModelHandle, folder: Path, facts: Mapping[str, Any]) -> ModelHandle:
    """Return a cut with the repairs that an adapter's folder brings along; itself where it brings none for this cut.

    Whether the adapter then fits is for `refuse_other` to say. Raises ModelError where the weights cannot be read.
    """
    if cut.plan is None or cut.treatments or not facts.get("repairs"):
        return cut
    mine = cut_facts(cut)
    if any(facts.get(name) != mine[name] for name in ("id", "revision", "architecture", "num_layers", "removed")):
        return cut
    known = dict(cut.model.named_parameters())
    try:
        weights = load_file(folder / REPAIRED)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"The repaired weights beside the adapter in {folder} cannot be read ({error}); fetch it again."
        ) from error
    if any(name not in known or known[name].shape != weight.shape for name, weight in weights.items()):
        return cut
    repaired = shared_copy(cut)
    put_weights(repaired.model, weights)
    return replace(repaired, treatments=tuple(from_plain(Treatment, each) for each in facts["repairs"]))


def refuse_other(folder: Path, facts: dict[str, Any], cut: ModelHandle) -> None:
    """Raise ModelError where an adapter was trained on another model, cut or repair than this; say on which."""
    mine = cut_facts(cut)
    same = ("id", "revision", "architecture", "num_layers", "removed", "treatments")
    differs = [name for name in same if facts.get(name) != mine[name]]
    if not differs and facts["dtype"] == mine["dtype"] and facts["weights"] != mine["weights"]:
        differs = ["weights"]
    as_it_is = cut.plan is None and all(facts[name] == mine[name] for name in ("architecture", "dtype", "weights"))
    if not differs or as_it_is:  # a checkpoint of the cut, loaded whole, has the very weights under another name
        return
    if differs == ["weights"]:
        raise ModelError(
            f"The adapter in {folder} was trained on {_name(facts)} with other weights than this model has; load the "
            "model that it was trained on."
        )
    repaired = [method for kind, method in facts.get("treatments") or () if kind == "repair"]
    if repaired and not mine["treatments"]:
        advice = "make that first, with the command in its README.md, and give the folder it wrote (--export) as MODEL"
    else:
        advice = "give it the model and the cut that it was trained on"
    raise ModelError(f"The adapter in {folder} was trained on {_name(facts)}, and this is {_name(mine)}; {advice}.")


def cut_facts(cut: ModelHandle) -> dict[str, Any]:
    """Return what an adapter's model is: by name, cut and repairs, and by a digest of its weights."""
    plan = plan_of(cut)
    return {
        "id": cut.info.id if hub_name(cut.info) else Path(cut.info.id).name,
        "revision": cut.info.revision,
        "architecture": cut.info.architecture,
        "num_layers": plan.num_layers,
        "removed": list(plan.removed),
        "treatments": [[treatment.kind, treatment.method] for treatment in cut.treatments],
        "dtype": cut.info.dtype,
        "weights": weights_digest(cut.model),
    }


def _name(facts: Mapping[str, Any]) -> str:
    model = f"{facts.get('id')} ({facts.get('architecture')}, {facts.get('num_layers')} layers)"
    removed = facts.get("removed") or []
    cut = f" without layers {layers_text(removed)}" if removed else ", uncut"
    treated = [method for _, method in facts.get("treatments") or []]
    return model + cut + (f", treated by {', '.join(treated)}" if treated else "")


def plan_of(cut: ModelHandle) -> PrunePlan:
    """Return what was removed; a model that nothing was removed from has an empty plan."""
    return cut.plan or PrunePlan(num_layers=cut.info.num_layers, removed=())
