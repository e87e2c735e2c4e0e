"""The model that is trained: a shared-tensor copy of the cut one, with what is trained put into it.

Merging adapters into a model that shares weights changes the other one too. So the copy is thrown away, and what it
learned is added up into new tensors for a second copy; the cut model and the uncut one are never touched.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortviz.architectures import layer_stack
from shortviz.errors import PlanError
from shortviz.handle import ModelHandle
from shortviz.heal_packages import check_packages
from shortviz.heal_settings import HealSettings
from shortviz.heal_targets import Targets, find_targets, last_part
from shortviz.new_weights import shared_copy


@dataclass(frozen=True, kw_only=True, eq=False)
class Student:
    """A shared-tensor copy of a cut model, being trained."""

    handle: ModelHandle
    cut: ModelHandle
    trained: Mapping[str, nn.Parameter]
    """What is trained, by its name in the copy."""
    adapter_config: Any = None
    """peft's LoraConfig; None for partial fine-tuning."""
    checkpoints: bool = False
    """Activations are computed twice instead of kept."""
    note: str = ""
    masters: dict[str, Tensor] = field(default_factory=dict)
    """float32 copies of the trained weights that are narrower: small steps would be rounded away."""

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(weight.numel() for weight in self.trained.values())

    def state(self) -> dict[str, Tensor]:
        """Return a copy of what is trained, in full precision, on the CPU."""
        return {name: self.masters.get(name, w).detach().to("cpu", copy=True) for name, w in self.trained.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put a state back."""
        for name, weight in self.trained.items():
            weight.copy_(state[name])
            if name in self.masters:
                self.masters[name].copy_(state[name])


def make_student(cut: ModelHandle, settings: HealSettings) -> Student:
    """Return a student of a cut model; the caller seeds torch's generator, which the adapters' first weights come from.

    Raises PlanError where there is nothing to train by these settings, ResourceError where a package is missing.
    """
    student = _with_adapters(cut, settings) if settings.method == "lora" else _partly_free(cut, settings)
    for name, weight in student.trained.items():
        if weight.element_size() < 4:
            student.masters[name] = weight.detach().float().clone()
    if settings.gradient_checkpointing:
        student.handle.model.activation_checkpointing_enable({"use_reentrant": False})
    return replace(student, checkpoints=settings.gradient_checkpointing)


def set_training(student: Student, on: bool) -> None:
    """Switch dropout of the adapters, and nothing else, on or off: the frozen model stays as it will be used."""
    model = student.handle.model
    model.eval()
    if not on:
        return
    for name, module in model.named_modules():
        if name.endswith("lora_dropout"):
            module.train()
    if student.checkpoints:
        for layer in layer_stack(model).layers:
            layer.training = True  # the flag that checkpointing looks at; what is inside the layer stays in eval mode


def _with_adapters(cut: ModelHandle, settings: HealSettings) -> Student:
    check_packages(settings)
    import peft

    targets = find_targets(cut.model, settings.targets)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scale_alpha,
        # peft cannot drop inputs of experts that are kept in one tensor
        lora_dropout=0.0 if targets.parameters else settings.dropout,
        target_modules=list(targets.modules),
        target_parameters=list(targets.parameters) or None,
        fan_in_fan_out=targets.transposed,
        bias="none",
        task_type="CAUSAL_LM",
    )
    student = inject(cut, config, in_4bit=settings.quantize == "4bit")
    _check_adapted(student.handle.model, cut, targets)
    quantised = (
        "The frozen weights were held in 4 bits while training, and the held-out losses are that model's; the healed "
        "model has its own weights in full."
    )
    notes = (targets.note, quantised if settings.quantize == "4bit" else "")
    return replace(student, note=" ".join(note for note in notes if note))


def inject(cut: ModelHandle, config: Any, *, in_4bit: bool = False) -> Student:
    """Return a student with the adapters that peft's LoraConfig describes; their first weights are torch's to draw."""
    import peft

    shared = shared_copy(cut)
    if in_4bit:
        from shortviz.heal_quantise import check_quantiser, quantise_layers

        check_quantiser(shared.model.device)
        quantise_layers(shared.model)
    peft.inject_adapter_in_model(config, shared.model)
    trained = {name: weight for name, weight in shared.model.named_parameters() if weight.requires_grad}
    return Student(handle=shared, cut=cut, trained=trained, adapter_config=config)


def _check_adapted(model: PreTrainedModel, cut: ModelHandle, targets: Targets) -> None:
    """Raise PlanError unless the adapters sit on exactly the weights that were meant."""
    path = layer_stack(cut.model).path
    ends = (*(f"{name}.weight" for name in targets.modules), *targets.parameters)
    meant = {
        name
        for name, _ in cut.model.named_parameters(remove_duplicate=False)
        if name.startswith(f"{path}.") and name.removeprefix(f"{path}.").partition(".")[2] in ends
    }
    adapted = {name for name, _ in adapted_weights(model)}
    if odd := sorted(meant ^ adapted):
        what = "no adapter" if odd[0] in meant else "an adapter that was not asked for"
        raise PlanError(f"peft gave {odd[0]} {what}; name the targets one by one, or choose method partial.")


def adapted_weights(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Yield (name of the weight in the unadapted model, peft's layer) of each adapter."""
    from peft.tuners.lora import LoraLayer, ParamWrapper

    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        clean = ".".join(part for part in name.split(".") if part != "base_layer")
        leaf = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
        yield f"{clean}.{leaf}", module


def _partly_free(cut: ModelHandle, settings: HealSettings) -> Student:
    """Return a student with its own copies of the weights that are trained, in place of the shared ones."""
    shared = shared_copy(cut)
    trained: dict[str, nn.Parameter] = {}
    for name, weight in last_part(shared.model, settings.last_layers).items():
        trained[name] = nn.Parameter(weight.detach().clone(), requires_grad=True)
    head = shared.model.get_output_embeddings()
    embeddings = {id(weight) for weight in shared.model.get_input_embeddings().parameters()}
    tied = head is not None and any(id(weight) in embeddings for weight in head.parameters())
    _put_by_all_names(shared.model, trained)
    note = "The head is tied to the input embeddings and was not trained." if tied else ""
    return Student(handle=shared, cut=cut, trained=trained, note=note)


def _put_by_all_names(model: PreTrainedModel, weights: Mapping[str, nn.Parameter]) -> None:
    """Put parameters into a model by name, in place of its own; a weight that has several names gets all of them."""
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    own = dict(model.named_parameters(remove_duplicate=False))
    for name, new in weights.items():
        for place in names[id(own[name])]:
            parent, _, leaf = place.rpartition(".")
            setattr(model.get_submodule(parent), leaf, new)


@torch.no_grad()
def merge(student: Student) -> ModelHandle:
    """Return a new handle on the cut model with what was learned; only the changed weights are new tensors."""
    healed = shared_copy(student.cut)
    own = dict(healed.model.named_parameters(remove_duplicate=False))
    new: dict[str, nn.Parameter] = {}
    if student.adapter_config is None:
        for name, weight in student.trained.items():
            new[name] = nn.Parameter(weight.detach().clone(), requires_grad=False)
    else:
        for name, layer in adapted_weights(student.handle.model):
            before = own[name]
            wide = torch.float64 if before.dtype == torch.float64 else torch.float32
            delta = layer.get_delta_weight("default").to(before.device, wide)
            new[name] = nn.Parameter((before.to(wide) + delta).to(before.dtype), requires_grad=False)
    _put_by_all_names(healed.model, new)
    healed.model.requires_grad_(False).eval()
    return healed
