"""The model that is trained: a shared-tensor copy of the cut one, with what is trained put into it.

Merging adapters into a model that shares weights changes the other one too. So the copy is thrown away, and what it
learned is added up into new tensors for a second copy; the cut model and the uncut one are never touched.
"""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shortviz.errors import PlanError, ResourceError
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack
from shortviz.model.prune import shared_copy
from shortviz.records.heal import HealSettings

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

    They are found by structure and by name inside a layer, for every family; routers are left out. Raises PlanError
    where a name is not there, or there is nothing of the kind.
    """
    layers = layer_stack(model).layers
    modules = [found for layer in layers for found in layer.named_modules()]
    linear = {path: module for path, module in modules if _is_adaptable(path, module)}
    weights = [found for layer in layers for found in layer.named_parameters()]
    experts = {path for path, weight in weights if weight.ndim == 3 and "expert" in path}
    paths = (*linear, *sorted(experts))
    usable = [p for p in paths if "att" in p or not _MIXERS.search(p) or p.rpartition(".")[2] not in _NOT_ADAPTED]
    note = ""
    if wanted == "all":
        chosen = usable
    elif wanted == "mlp":
        chosen = [path for path in paths if not _MIXERS.search(path)]
        if not chosen:
            chosen = usable
            note = f"The layers have no MLP; {', '.join(chosen)} of their mixers were trained."
    else:
        chosen = _named(wanted, paths)
    if not chosen:
        raise PlanError(f"The layers of {type(model).__name__} have nothing that {wanted!r} could name; choose all.")
    return Targets(
        modules=tuple(path for path in chosen if path in linear),
        parameters=tuple(path for path in chosen if path in experts),
        transposed={isinstance(linear[path], Conv1D) for path in chosen if path in linear} == {True},
        note=note,
    )


def _is_adaptable(path: str, module: nn.Module) -> bool:
    single = isinstance(module, nn.Linear) and module.out_features == 1
    return isinstance(module, nn.Linear | Conv1D) and not single and not _ROUTERS.search(path)


def _named(wanted: str, paths: tuple[str, ...]) -> list[str]:
    chosen: list[str] = []
    for name in (part.strip() for part in wanted.split(",")):
        here = [path for path in paths if name and (path == name or path.endswith(f".{name}"))]
        if not here:
            raise PlanError(f"The layers have nothing named {name!r} to train; they have {', '.join(paths)}.")
        chosen += [path for path in here if path not in chosen]
    return chosen


def last_part(model: PreTrainedModel, last_layers: int) -> dict[str, nn.Parameter]:
    """Return the weights that partial fine-tuning trains, by name: last layers, final norm, and the head if it is free.

    A head that is tied to the input embeddings stays as it is: training it would move every token's first state.

    Raises PlanError where the model has fewer layers.
    """
    stack, head = layer_stack(model), model.get_output_embeddings()
    count = len(stack.layers)
    if last_layers > count:
        raise PlanError(f"The last {last_layers} layers were to be trained, and the model has {count}; choose fewer.")
    beside = stack.decoder.named_children()
    norms = [m for name, m in beside if "norm" in type(m).__name__.lower() and "embed" not in name]  # bloom has one
    heads = [] if head is None else [head]
    trained = _weight_ids(*stack.layers[count - last_layers :], *norms, *heads)
    trained -= _weight_ids(*stack.layers[: count - last_layers], model.get_input_embeddings())
    return {name: weight for name, weight in model.named_parameters() if id(weight) in trained}


def _weight_ids(*modules: nn.Module) -> set[int]:
    return {id(weight) for module in modules for weight in module.parameters()}


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

    in_4bit = settings.quantize == "4bit"
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
    student = inject(cut, config, in_4bit=in_4bit)
    _check_adapted(student.handle.model, cut, targets)
    quantised = (
        "The frozen weights were held in 4 bits while training, and the held-out losses are that model's; the healed "
        "model has its own weights in full."
    )
    return replace(student, note=" ".join(filter(None, (targets.note, quantised if in_4bit else ""))))


def inject(cut: ModelHandle, config: Any, *, in_4bit: bool = False) -> Student:
    """Return a student with the adapters that peft's LoraConfig describes; their first weights are torch's to draw."""
    import peft

    shared = shared_copy(cut)
    if in_4bit:
        check_quantiser(shared.model.device)
        _quantise_layers(shared.model)
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
    free, head = last_part(shared.model, settings.last_layers), shared.model.get_output_embeddings()
    ids = set(map(id, free.values()))
    tied = head is not None and any(id(weight) not in ids for weight in head.parameters())
    trained = {name: nn.Parameter(weight.detach().clone(), requires_grad=True) for name, weight in free.items()}
    _put_by_all_names(shared.model, trained)
    note = "The head is tied to the input embeddings and was not trained." if tied else ""
    return Student(handle=shared, cut=cut, trained=trained, note=note)


def _put_by_all_names(model: PreTrainedModel, weights: Mapping[str, nn.Parameter]) -> None:
    """Put parameters into a model by name, in place of its own; a weight that has several names gets all of them."""
    fresh = {id(model.get_parameter(name)): weight for name, weight in weights.items()}
    for place, weight in list(model.named_parameters(remove_duplicate=False)):
        if id(weight) in fresh:
            parent, _, leaf = place.rpartition(".")
            setattr(model.get_submodule(parent), leaf, fresh[id(weight)])


@torch.no_grad()
def merge(student: Student) -> ModelHandle:
    """Return a new handle on the cut model with what was learned; only the changed weights are new tensors."""
    healed = shared_copy(student.cut)
    new: dict[str, nn.Parameter] = {}
    if student.adapter_config is None:
        for name, weight in student.trained.items():
            new[name] = nn.Parameter(weight.detach().clone(), requires_grad=False)
    else:
        for name, layer in adapted_weights(student.handle.model):
            before = healed.model.get_parameter(name)
            wide = torch.float64 if before.dtype == torch.float64 else torch.float32
            delta = layer.get_delta_weight("default").to(before.device, wide)
            new[name] = nn.Parameter((before.to(wide) + delta).to(before.dtype), requires_grad=False)
    _put_by_all_names(healed.model, new)
    healed.model.requires_grad_(False).eval()
    return healed


def check_packages(settings: HealSettings) -> None:
    """Raise ResourceError with the install command where a recipe needs a package that is not there."""
    if settings.method == "lora":
        check_package("peft", "Training adapters needs", ", or choose method partial")


def check_package(name: str, needs: str, otherwise: str = "") -> None:
    """Raise ResourceError where a package is not installed; `needs` begins its sentence, `otherwise` ends it."""
    if importlib.util.find_spec(name) is None:
        raise ResourceError(f"{needs} the package {name}, which is not installed; run `pip install {name}`{otherwise}.")


def check_quantiser(device: torch.device) -> None:
    """Raise ResourceError where weights cannot be held in 4 bits here: no CUDA device, or no bitsandbytes."""
    if device.type != "cuda":
        raise ResourceError(
            f"Training in 4 bits needs a CUDA device, and the model is on {device}; choose quantize none, or load the "
            "model with device cuda."
        )
    check_package("bitsandbytes", "Training in 4 bits needs")


def _quantise_layers(model: PreTrainedModel) -> None:
    """Replace the linear layers inside the decoder layers by 4-bit ones (QLoRA, arXiv 2305.14314).

    The model must own its modules (a shared-tensor copy does); the tensors it shares with others are read, not changed.
    What is learned is added to the cut model's own weights in their own precision: nothing that is kept was quantised.
    """
    import bitsandbytes as bnb

    compute = model.dtype if model.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    for layer in layer_stack(model).layers:
        for path, module in list(layer.named_modules()):
            if type(module) is nn.Linear:
                parent, _, leaf = path.rpartition(".")
                setattr(layer.get_submodule(parent), leaf, _in_4bit(bnb, module, compute))
    model.is_loaded_in_4bit = True  # what peft looks at


def _in_4bit(bnb: Any, linear: nn.Linear, compute: torch.dtype) -> nn.Module:
    made: nn.Module = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=compute,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    weight = linear.weight.detach()
    made.weight = bnb.nn.Params4bit(
        weight.to("cpu", copy=True), requires_grad=False, compress_statistics=True, quant_type="nf4", module=made
    ).to(weight.device)
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    return made
