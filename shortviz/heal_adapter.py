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

from shortviz.adapter_cut import REPAIRED, cut_facts, plan_of, refuse_other, repaired_weights, with_repairs
from shortviz.checkpoint_folder import check_space, check_target, filled_beside, move_into_place, write_error
from shortviz.errors import ModelError
from shortviz.handle import ModelHandle
from shortviz.heal_packages import check_peft
from shortviz.heal_student import Student, inject, merge
from shortviz.ledger import Treatment
from shortviz.model_card import CARDS, hub_name
from shortviz.record_json import from_plain, plain
from shortviz.records import ModelInfo
from shortviz.treated_recipe import treated_recipe
from shortviz.words import counted, layers_text

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


def export_adapter(adapter: Adapter, folder: Path, *, base: ModelHandle | None = None) -> Path:
    """Write an adapter alone, and return the folder: weights and config in peft's format, and a card.

    The config names the model and the cut that the adapter belongs to; `load_adapter` refuses any other. With `base`,
    the uncut model, an adapter that was trained on a repaired cut brings the repaired weights along.

    Raises ExportError where the folder is taken or cannot be written, ResourceError where the disk is too small.
    """
    target = check_target(Path(folder))
    repairs = repaired_weights(adapter.cut, base) if base is not None else {}
    needed = sum(tensor.nbytes for tensor in (*adapter.tensors.values(), *repairs.values())) + _ROOM
    check_space(target, needed)
    facts = cut_facts(adapter.cut) | {"treatment": plain(adapter.treatment)}
    whole = bool(repairs) or not adapter.cut.treatments
    if repairs:
        facts["repairs"] = plain(adapter.cut.treatments)
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
            if repairs:
                save_file(repairs, made / REPAIRED, {"format": "pt"})
            save_file(dict(adapter.tensors), made / WEIGHTS, {"format": "pt"})
            text = json.dumps(config, indent=2, default=_plain, allow_nan=False)
            (made / CONFIG).write_text(f"{text}\n", encoding="utf-8")
            (made / "README.md").write_text(_card(adapter, target.name, whole), encoding="utf-8")
            for weights in made.glob("*.safetensors"):
                weights.chmod((made / "README.md").stat().st_mode)
        except (OSError, SafetensorError) as error:
            raise write_error(error, target, needed) from error
        move_into_place(made, target)
    return target


def _plain(value: Any) -> Any:
    """Return what JSON has no word for: sets as sorted lists, peft's enumerations as their value."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))


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


def cut_of(folder: Path) -> tuple[int, tuple[int, ...]]:
    """Return (layers of the uncut model, layers removed) of the cut that an adapter belongs to.

    Raises ModelError where the folder holds no adapter of ours.
    """
    facts = _read_config(Path(folder))[1]
    return int(facts["num_layers"]), tuple(int(layer) for layer in facts["removed"])


def _student(cut: ModelHandle, folder: Path) -> tuple[Student, Treatment]:
    """Return the cut model's student with the weights of an adapter, and what made them."""
    config, facts = _read_config(folder)
    cut = with_repairs(cut, folder, facts)
    refuse_other(folder, facts, cut)
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
    return student, from_plain(Treatment, facts["treatment"])


def _read_config(folder: Path) -> tuple[Any, dict[str, Any]]:
    check_peft()
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


def _card(adapter: Adapter, folder: str, whole: bool) -> str:
    """Return the card; `whole` says that the folder has all that is needed beside the uncut model."""
    cut = adapter.cut
    base: ModelInfo = cut.info
    plan = plan_of(cut)
    shown = base.id if hub_name(base) else Path(base.id).name
    return CARDS.get_template("adapter_card.md").render(
        folder=folder,
        base=shown,
        plan=plan,
        removed=layers_text(plan.removed),
        done=[t.method for t in cut.treatments],
        recipe=treated_recipe(shown, plan, cut.treatments, folder="cut", revision=base.revision, dtype=base.dtype),
        found=adapter.treatment.settings,
        text=adapter.treatment.text,
        model=shlex.quote(shown if whole else "cut"),
        quoted=shlex.quote(folder),
        counted=counted,
    )
