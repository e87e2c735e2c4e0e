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

# The packages that a training needs beside the models' own: looked for before a model is loaded. No torch.


def check_packages(settings: HealSettings) -> None:
    """Raise ResourceError with the install command where a recipe needs a package that is not there."""
    if settings.method == "lora":
        check_peft("Training adapters needs", " or choose method partial")


def check_peft(needs: str = "Reading an adapter needs", otherwise: str = "") -> None:
    """Raise ResourceError where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        other = f",{otherwise}" if otherwise else ""
        raise ResourceError(f"{needs} the package peft, which is not installed; run `pip install peft`{other}.")


def check_bitsandbytes() -> None:
    """Raise ResourceError where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ResourceError(
            "Training in 4 bits needs the package bitsandbytes, which is not installed; run `pip install bitsandbytes`."
        )


# Which weights of a model are trained: found by structure and by name inside a layer, for every family.

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


# QLoRA: the frozen linear layers of a student in 4 bits while it is trained (Dettmers et al. 2023, arXiv 2305.14314).
#
# What is learned is added to the cut model's own weights in their own precision: nothing that is kept was quantised.


def check_quantiser(device: torch.device) -> None:
    """Raise ResourceError where weights cannot be held in 4 bits here: no CUDA device, or no bitsandbytes."""
    if device.type != "cuda":
        raise ResourceError(
            f"Training in 4 bits needs a CUDA device, and the model is on {device}; choose quantize none, or load the "
            "model with device cuda."
        )
    check_bitsandbytes()


def quantise_layers(model: PreTrainedModel) -> int:
    """Replace the linear layers inside the decoder layers by 4-bit ones, and return their number.

    The model must own its modules (a shared-tensor copy does); the tensors it shares with others are read, not changed.
    """
    import bitsandbytes as bnb

    compute = model.dtype if model.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    replaced = 0
    for layer in layer_stack(model).layers:
        for path, module in list(layer.named_modules()):
            if type(module) is nn.Linear:
                parent, _, leaf = path.rpartition(".")
                setattr(layer.get_submodule(parent), leaf, _in_4bit(bnb, module, compute))
                replaced += 1
    model.is_loaded_in_4bit = True  # what peft looks at
    return replaced


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
