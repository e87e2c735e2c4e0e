"""What a training learned, alone: a folder in peft's format that says which cut of which model it belongs to."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shortviz.errors import ModelError
from shortviz.export.card import CARDS
from shortviz.export.folder import check_target, filled_beside, move_into_place, write_error
from shortviz.export.recipes import recipe_of
from shortviz.heal.student import Student, check_package, inject, merge
from shortviz.model.delta import delta_weights, weights_digest
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import put_weights, shared_copy
from shortviz.records.formatting import counted, layers_text
from shortviz.records.json import from_plain, plain
from shortviz.records.ledger import Treatment
from shortviz.records.model import hub_name

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
REPAIRED = "repaired.safetensors"
"""Beside an adapter that was trained on a repaired cut: the weights that the repairs made. peft does not look at it."""
_ROOM = 4 * 2**20
_CUT = ("id", "revision", "architecture", "num_layers", "removed")
"""What tells one cut from another."""


def with_repairs(cut: ModelHandle, folder: Path, facts: Mapping[str, Any]) -> ModelHandle:
    """Return a cut with the repairs that an adapter's folder brings along; itself where it brings none for this cut.

    Whether the adapter then fits is for `refuse_other` to say. Raises ModelError where the weights cannot be read.
    """
    if cut.plan is None or cut.treatments or not facts.get("repairs"):
        return cut
    mine = cut_facts(cut)
    if any(facts.get(name) != mine[name] for name in _CUT):
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
    differs = [name for name in (*_CUT, "treatments") if facts.get(name) != mine[name]]
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
        advice = "make that first, with the command in its README.md, and give the folder that it wrote as the model"
    else:
        advice = "give it the model and the cut that it was trained on"
    raise ModelError(f"The adapter in {folder} was trained on {_name(facts)}, and this is {_name(mine)}; {advice}.")


def cut_facts(cut: ModelHandle) -> dict[str, Any]:
    """Return what an adapter's model is: by name, cut and repairs, and by a digest of its weights."""
    plan = cut.whole_plan
    return {
        "id": cut.info.shown_name,
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


def export_adapter(adapter: Adapter, folder: Path, *, base: ModelHandle | None = None, command: str = "") -> Path:
    """Write an adapter alone, and return the folder: weights and config in peft's format, and a card.

    The config names the model and the cut that the adapter belongs to; `load_adapter` refuses any other. With `base`,
    the uncut model, an adapter that was trained on a repaired cut brings the repaired weights along. `command`
    made that cut, as its ledger has it.

    Raises ExportError where the folder is taken or cannot be written, ResourceError where the disk is too small.
    """
    target = check_target(Path(folder))
    treatments, repairs = adapter.cut.treatments, {}
    if base is not None and treatments and all(treatment.kind == "repair" for treatment in treatments):
        own = delta_weights(adapter.cut, base)  # of one that was trained before they are many: it is exported whole
        repairs = {name: weight.detach().cpu().contiguous() for name, weight in own.items()}
    needed = sum(tensor.nbytes for tensor in (*adapter.tensors.values(), *repairs.values())) + _ROOM
    facts = cut_facts(adapter.cut) | {"treatment": plain(adapter.treatment)}
    whole = bool(repairs) or not treatments
    if repairs:
        facts["repairs"] = plain(treatments)
    config = adapter.config.to_dict() | {
        "base_model_name_or_path": hub_name(adapter.cut.info) or Path(adapter.cut.info.id).name,
        "revision": adapter.cut.info.revision,
        "inference_mode": True,
        "auto_mapping": {"shortviz": facts},  # the one field that peft hands on as it is
    }
    with filled_beside(target, needed) as room:
        made = room / "adapter"
        try:
            made.mkdir()
            if repairs:
                save_file(repairs, made / REPAIRED, {"format": "pt"})
            save_file(dict(adapter.tensors), made / WEIGHTS, {"format": "pt"})
            # JSON has no word for sets, nor for peft's enumerations
            text = json.dumps(
                config,
                indent=2,
                default=lambda value: sorted(value) if isinstance(value, set) else getattr(value, "value", str(value)),
                allow_nan=False,
            )
            (made / CONFIG).write_text(f"{text}\n", encoding="utf-8")
            (made / "README.md").write_text(_card(adapter, target.name, whole, command), encoding="utf-8")
            for weights in made.glob("*.safetensors"):
                weights.chmod((made / "README.md").stat().st_mode)
        except (OSError, SafetensorError) as error:
            raise write_error(error, target, needed) from error
        move_into_place(made, target)
    return target


def load_adapter(cut: ModelHandle, folder: Path) -> ModelHandle:
    """Return a new handle on a cut model with an exported adapter merged in; the cut model is not touched.

    Repairs that the folder brings along are made first. The model may also be an exported checkpoint of the cut as it
    was trained, loaded as it is. Raises ModelError where the folder holds no adapter of ours, or one of another model,
    cut or repair.
    """
    student, treatment = _student(cut, Path(folder))
    return replace(merge(student), treatments=(*student.cut.treatments, treatment))


def read_adapter(cut: ModelHandle, folder: Path) -> Adapter:
    """Return an exported adapter on the cut model that it was trained on; raises as `load_adapter` does."""
    student, treatment = _student(cut, Path(folder))
    return adapter_of(student, treatment)


def trained_cut(cut: ModelHandle, folder: Path) -> ModelHandle:
    """Return a cut model as an adapter was trained on it: with the repairs that the folder brings along, if any.

    The cut model is not touched. Raises ModelError as `load_adapter` does for an adapter of something else.
    """
    facts = _read_config(folder)[1]
    cut = with_repairs(cut, folder, facts)
    refuse_other(folder, facts, cut)
    return cut


def cut_of(folder: Path) -> tuple[int, tuple[int, ...]]:
    """Return (layers of the uncut model, layers removed) of the cut that an adapter belongs to.

    Raises ModelError where the folder holds no adapter of ours.
    """
    facts = _read_config(Path(folder))[1]
    return int(facts["num_layers"]), tuple(int(layer) for layer in facts["removed"])


def _student(cut: ModelHandle, folder: Path) -> tuple[Student, Treatment]:
    """Return the cut model's student with the weights of an adapter, and what made them."""
    config, facts = _read_config(folder)
    student = inject(trained_cut(cut, folder), config)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"The weights of the adapter {folder} cannot be read ({error}); fetch it again.") from error
    state = {name: tensors.get(_peft_name(name)) for name in student.trained}
    odd = [name for name, weight in state.items() if weight is None or weight.shape != student.trained[name].shape]
    if odd or len(tensors) != len(state):
        raise ModelError(f"The adapter {folder} has other weights than its config describes; fetch it again.")
    student.load({name: weight for name, weight in state.items() if weight is not None})
    return student, from_plain(Treatment, facts["treatment"])


def _read_config(folder: Path) -> tuple[Any, dict[str, Any]]:
    check_package("peft", "Reading an adapter needs")
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


def _card(adapter: Adapter, folder: str, whole: bool, command: str) -> str:
    """Return the card; `whole` says that the folder has all that is needed beside the uncut model."""
    cut, base, plan = adapter.cut, adapter.cut.info, adapter.cut.whole_plan
    shown = base.shown_name
    return CARDS.get_template("adapter_card.md").render(
        folder=folder,
        base=shown,
        plan=plan,
        removed=layers_text(plan.removed),
        done=[t.method for t in cut.treatments],
        recipe=recipe_of(shown, plan, cut.treatments, command, folder="cut", revision=base.revision, dtype=base.dtype),
        found=adapter.treatment.settings,
        text=adapter.treatment.text,
        model=shlex.quote(shown if whole else "cut"),
        quoted=shlex.quote(folder),
        counted=counted,
    )
