"""What a training learned, alone: a folder in peft's format that says which cut of which model it belongs to."""

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from shortviz.checkpoint_folder import check_space, check_target, filled_beside, move_into_place, write_error
from shortviz.errors import ModelError
from shortviz.handle import ModelHandle
from shortviz.heal_student import Student, inject, merge
from shortviz.ledger import Treatment
from shortviz.model_card import hub_name
from shortviz.planning import layers_text
from shortviz.record_json import read_treatment, treatment_json
from shortviz.records import ModelInfo, PrunePlan
from shortviz.treated_recipe import treated_recipe

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_ROOM = 4 * 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """Low-rank weights and what they belong to."""

    config: Any
    """peft's LoraConfig."""
    tensors: Mapping[str, Tensor]
    """By peft's names, on the CPU."""
    treatment: Treatment
    cut: ModelHandle
    """The model that it was trained on."""


def adapter_of(student: Student, treatment: Treatment) -> Adapter:
    """Return the adapter that a student holds now."""
    tensors = {_peft_name(name): weight.contiguous() for name, weight in student.state().items()}
    return Adapter(config=student.adapter_config, tensors=tensors, treatment=treatment, cut=student.cut)


def _peft_name(name: str) -> str:
    return f"base_model.model.{name.replace('.default', '')}"


def export_adapter(adapter: Adapter, folder: Path) -> Path:
    """Write an adapter alone, and return the folder: weights and config in peft's format, and a card.

    The config names the model and the cut that the adapter belongs to; `load_adapter` refuses any other.

    Raises ExportError where the folder is taken or cannot be written, ResourceError where the disk is too small.
    """
    target = check_target(Path(folder))
    needed = sum(tensor.nbytes for tensor in adapter.tensors.values()) + _ROOM
    check_space(target, needed)
    facts = _facts(adapter.cut) | {"treatment": treatment_json(adapter.treatment)}
    config = adapter.config.to_dict() | {
        "base_model_name_or_path": hub_name(adapter.cut.info) or Path(adapter.cut.info.id).name,
        "revision": adapter.cut.info.revision,
        "inference_mode": True,
        "auto_mapping": {"shortviz": facts},  # the one field that peft hands on as it is
    }
    with filled_beside(target) as room:
        made = room / "adapter"
        try:
            made.mkdir()
            save_file(dict(adapter.tensors), made / WEIGHTS, {"format": "pt"})
            text = json.dumps(config, indent=2, default=_plain, allow_nan=False)
            (made / CONFIG).write_text(f"{text}\n", encoding="utf-8")
            (made / "README.md").write_text(_card(adapter, target.name), encoding="utf-8")
            (made / WEIGHTS).chmod((made / "README.md").stat().st_mode)
        except (OSError, SafetensorError) as error:
            raise write_error(error, target, needed) from error
        move_into_place(made, target)
    return target


def _plain(value: Any) -> Any:
    """Return what JSON has no word for: sets as sorted lists, peft's enumerations as their value."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))


def load_adapter(cut: ModelHandle, folder: Path) -> ModelHandle:
    """Return a new handle on a cut model with an exported adapter merged in; the cut model is not touched.

    The model may also be an exported checkpoint of that cut, loaded as it is. Raises ModelError where the folder holds
    no adapter of ours, or one of another model, cut or repair.
    """
    student, treatment = _student(cut, Path(folder))
    return replace(merge(student), treatments=(*cut.treatments, treatment))


def read_adapter(cut: ModelHandle, folder: Path) -> Adapter:
    """Return an exported adapter on the cut model that it was trained on; raises as `load_adapter` does."""
    student, treatment = _student(cut, Path(folder))
    return adapter_of(student, treatment)


def cut_of(folder: Path) -> tuple[int, tuple[int, ...]]:
    """Return (layers of the uncut model, layers removed) of the cut that an adapter belongs to.

    Raises ModelError where the folder holds no adapter of ours.
    """
    facts = _read_config(Path(folder))[1]
    return int(facts["num_layers"]), tuple(int(layer) for layer in facts["removed"])


def _student(cut: ModelHandle, folder: Path) -> tuple[Student, Treatment]:
    """Return the cut model's student with the weights of an adapter, and what made them."""
    config, facts = _read_config(folder)
    _refuse_other(folder, facts, cut)
    student = inject(cut, config)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"The weights of the adapter {folder} cannot be read ({error}); fetch it again.") from error
    state = {name: tensors.get(_peft_name(name)) for name in student.trained}
    odd = [name for name, weight in state.items() if weight is None or weight.shape != student.trained[name].shape]
    if odd or len(tensors) != len(state):
        raise ModelError(f"The adapter {folder} has other weights than its config describes; fetch it again.")
    student.load({name: weight for name, weight in state.items() if weight is not None})
    return student, read_treatment(facts["treatment"])


def _read_config(folder: Path) -> tuple[Any, dict[str, Any]]:
    import peft

    try:
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        facts = (fields.get("auto_mapping") or {}).get("shortviz")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"There is no adapter in {folder} ({CONFIG}: {error}); check the path.") from error
    if not isinstance(facts, dict):
        raise ModelError(
            f"The adapter in {folder} does not say which cut of which model it belongs to, so it was not made by "
            "shortviz heal; load it with peft."
        )
    known = set(peft.LoraConfig.__dataclass_fields__)
    values = {name: value for name, value in fields.items() if name in known and name != "auto_mapping"}
    return peft.LoraConfig(**values | {"inference_mode": False}), facts


def _refuse_other(folder: Path, facts: dict[str, Any], cut: ModelHandle) -> None:
    mine = _facts(cut)
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
        advice = "make that first, with the command in its README.md, and give the folder it wrote as the model"
    else:
        advice = "give it the model and the cut that it was trained on"
    raise ModelError(f"The adapter in {folder} was trained on {_name(facts)}, and this is {_name(mine)}; {advice}.")


def _facts(cut: ModelHandle) -> dict[str, Any]:
    """Return what an adapter's model is: by name, cut and repairs, and by a digest of its weights."""
    plan = _plan(cut)
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


def _plan(cut: ModelHandle) -> PrunePlan:
    return cut.plan or PrunePlan(num_layers=cut.info.num_layers, removed=())


@torch.no_grad()
def weights_digest(model: PreTrainedModel) -> str:
    """Return a SHA-256 over the name, the shape and a sample of each weight: enough to tell two models apart."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().reshape(-1)
        places = torch.linspace(0, len(flat) - 1, min(64, len(flat)), dtype=torch.float64).long().to(flat.device)
        sample = flat[places].double().cpu().numpy().astype("<f8")
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(np.ascontiguousarray(sample).tobytes())
    return digest.hexdigest()


def _card(adapter: Adapter, folder: str) -> str:
    cut, treatment = adapter.cut, adapter.treatment
    base: ModelInfo = cut.info
    plan = _plan(cut)
    shown = base.id if hub_name(base) else Path(base.id).name
    done = [t.method for t in cut.treatments]
    recipe = treated_recipe(shown, plan, cut.treatments, folder="cut", revision=base.revision, dtype=base.dtype)
    found = treatment.settings
    text = treatment.text
    trained_on = f"{text.source}, {text.tokens:,} tokens" if text is not None else "text"
    return "\n".join(
        [
            f"# {folder}",
            "",
            f"A LoRA adapter (rank {found['rank']}) that heals {shown}"
            + (f" without layers {layers_text(plan.removed)} of its {plan.num_layers} (from 0)" if plan.removed else "")
            + ". It fits this cut and no other.",
            *([f"The cut was treated by {', '.join(done)} first."] if done else []),
            "",
            f"Trained on {trained_on}; objective {found['objective']}, {found['best_step']} steps of "
            f"{found['batch_size']} x {found['accumulate']} windows of {found['length']} tokens. Loss on "
            f"{found['heldout_text']}, which chose the step: {found['heldout_nll_before']:.4f} before, "
            f"{found['heldout_nll']:.4f} after, in nats a token.",
            "",
            " ".join(["Make the cut first, as it was treated, then put the adapter on it.", *recipe.notes])
            if done
            else "Make the cut first, then put the adapter on it:",
            "",
            "```sh",
            recipe.command,
            "```",
            "",
            "```python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("cut"), "{folder}")',
            "```",
            "",
            "Or let shortviz do both, and measure or write the healed model:",
            "",
            "```sh",
            f"shortviz evaluate {shlex.quote(shown if not done else 'cut')} --adapter {shlex.quote(folder)}",
            f"shortviz prune {shlex.quote(shown if not done else 'cut')} --adapter {shlex.quote(folder)} --out healed",
            "```",
            "",
            "Made with shortviz. The cut, the settings and the numbers are in `adapter_config.json`, under "
            "`auto_mapping`.",
            "",
        ]
    )
