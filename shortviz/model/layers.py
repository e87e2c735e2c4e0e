"""Where a model keeps its layers, what its config says about each, and how their weights are named.

Everything goes by structure and field names, not by family: see `model/config.py` for the table.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from shortviz.errors import ModelError, PlanError
from shortviz.model.config import Check, refusal_checks, rewrite
from shortviz.model.handle import ModelHandle
from shortviz.progress import Watch
from shortviz.records.plan import PrunePlan

_TEXT_CONFIGS = ("text_config", "decoder", "generator")


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerStack:
    """The decoder layers of a live model."""

    decoder: nn.Module
    """The module that turns token ids into final hidden states: everything but the LM head."""
    layers: nn.ModuleList
    path: str
    """Name of `layers` in the model, e.g. `model.layers`."""


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the part of the config that describes the decoder: itself, or the text part of a composite config."""
    return config.get_text_config(decoder=True)


def placeholder_ids(config: PreTrainedConfig) -> frozenset[int]:
    """Return the tokens that stand for pictures or sound: a composite model reads others in their place."""
    fields = (f"{sense}_token_{kind}" for sense in ("image", "video", "audio") for kind in ("id", "index"))
    found = (getattr(config, field, None) for field in fields)
    return frozenset(token for token in found if isinstance(token, int))


def text_part(config: PreTrainedConfig) -> str | None:
    """Return the name of the field with the text config of a composite one, None where the config itself is that.

    Raises PlanError where the part is found by no name.
    """
    text = text_config(config)
    if text is config:
        return None
    part = next((name for name in _TEXT_CONFIGS if getattr(config, name, None) is text), None)
    if part is None:
        raise PlanError(f"The text part of a {config.model_type} config cannot be written back; choose another model.")
    return part


def num_layers(config: PreTrainedConfig) -> int:
    """Return the number of decoder layers the config states; raises ModelError where it states none."""
    count = getattr(text_config(config), "num_hidden_layers", None)
    if not isinstance(count, int):
        raise ModelError(f"The config of model type {config.model_type!r} states no number of layers; choose another.")
    return count


def stream_width(config: PreTrainedConfig) -> int:
    """Return the numbers that a token's residual stream has: the hidden size, or that of AltUp's streams together."""
    text = text_config(config)
    return int(text.hidden_size) * int(getattr(text, "altup_num_inputs", None) or 1)


def refuse_unsupported(config: PreTrainedConfig) -> None:
    """Raise ModelError unless the config describes a causal language model of at least two layers."""
    named = ", ".join(getattr(config, "architectures", None) or []) or config.model_type
    advice = "choose a causal (decoder-only) language model"
    if config.is_encoder_decoder:
        raise ModelError(f"{named} is an encoder-decoder model; {advice}.")
    kind = config.model_type
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(text_config(config), "is_decoder", False)
    if encoder:
        raise ModelError(f"{named} is an encoder-only model; {advice}.")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"{named} (model type {kind!r}) is not a causal language model; {advice}.")
    if num_layers(config) < 2:
        raise ModelError(f"{named} has {num_layers(config)} layer; choose a model of at least 2.")


def layer_stack(model: PreTrainedModel) -> LayerStack:
    """Return the decoder layers of a model: the one outermost ModuleList of as many modules as the config has layers.

    Raises:
        ModelError: there is no such list, or more than one.
    """
    count = num_layers(model.config)
    decoder = model.get_decoder()
    root = decoder if isinstance(decoder, nn.Module) else model
    found = _outermost_lists(root, count) or _outermost_lists(model, count)
    name = type(model).__name__
    if not found:
        raise ModelError(f"{name} has no list of {count} layers; its decoder cannot be cut by this version.")
    if len(found) > 1:
        raise ModelError(f"{name} has {len(found)} lists of {count} modules; which holds its layers is unclear.")
    path = next(path for path, module in model.named_modules() if module is found[0])
    parent = model.get_submodule(path.rpartition(".")[0])
    return LayerStack(decoder=parent, layers=found[0], path=path)


def _outermost_lists(root: nn.Module, count: int) -> list[nn.ModuleList]:
    """Return the ModuleLists of `count` modules that are not inside another one (experts of one layer are).

    A list of bare matrices is none: a cut gemma3n may keep as many layers as it has projections beside them.
    """
    lists = {name: m for name, m in root.named_modules() if isinstance(m, nn.ModuleList)}
    sized = {name: m for name, m in lists.items() if len(m) == count and any(next(x.children(), None) for x in m)}
    return [m for name, m in sized.items() if not any(name.startswith(f"{outer}.") for outer in lists)]


def pruned_config(config: PreTrainedConfig, plan: PrunePlan) -> PreTrainedConfig:
    """Return a new config that describes exactly the kept layers; an empty plan gives an equal copy.

    Raises:
        PlanError: the plan is for another number of layers, or the stock config cannot express it (field named).
    """
    text = text_config(config)
    if plan.num_layers != num_layers(config):
        raise PlanError(
            f"The plan is for {plan.num_layers} layers, the model has {num_layers(config)}; make a new one."
        )
    if not plan.removed:
        return copy.deepcopy(config)
    reason = illegal_reason(config, plan.removed)
    if reason is not None:
        raise PlanError(reason)
    fields = text.to_dict()
    changes = rewrite(fields, plan.num_layers, plan.kept)
    changes[text.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(plan.kept)
    pruned = _from_fields(text, fields | changes)
    _check_written(pruned, changes, len(plan.kept))
    if text is config:
        return pruned
    whole = copy.deepcopy(config)
    part = text_part(config)
    assert part is not None
    setattr(whole, part, pruned)
    return whole


def _from_fields(like: PreTrainedConfig, fields: dict[str, Any]) -> PreTrainedConfig:
    try:
        # A copy: some config classes change the lists they are given.
        pruned = type(like).from_dict(copy.deepcopy(fields))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise PlanError(f"The {like.model_type} config cannot describe the layers that stay: {error}") from error
    pruned._attn_implementation = like._attn_implementation
    pruned._experts_implementation = like._experts_implementation
    return pruned


def _check_written(pruned: PreTrainedConfig, changes: dict[str, Any], count: int) -> None:
    """Refuse where the config class derives a field anew and so undoes what we wrote."""
    written = pruned.to_dict()
    for name, value in changes.items():
        if written.get(name, value) != value:
            raise PlanError(f"These layers cannot be removed: the config class overwrites field {name}; choose others.")
    if pruned.num_hidden_layers != count:
        raise PlanError(f"The config still says {pruned.num_hidden_layers} layers where {count} stay; choose others.")


def _refusal_checks(config: PreTrainedConfig) -> list[Check]:
    text = text_config(config)
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()
    return refusal_checks(text.to_dict(), num_layers(config), kinds)


def illegal_reason(config: PreTrainedConfig, removed: Iterable[int]) -> str | None:
    """Return why the stock config cannot do without these layers, the field named; None where it can."""
    gone = set(removed)
    kept = tuple(i for i in range(num_layers(config)) if i not in gone)
    return _refusal(_refusal_checks(config), kept) if kept else None


def illegal_blocks(config: PreTrainedConfig) -> tuple[tuple[int, int, str], ...]:
    """Return (start, n, reason) of every block, short of all layers, that the stock config cannot express."""
    checks, every = _refusal_checks(config), tuple(range(num_layers(config)))
    blocks = [(start, n) for n in every[1:] for start in range(len(every) - n + 1)] if checks else []
    reasons = [_refusal(checks, every[:start] + every[start + n :]) for start, n in blocks]
    return tuple((*block, why) for block, why in zip(blocks, reasons, strict=True) if why is not None)


def _refusal(checks: list[Check], kept: tuple[int, ...]) -> str | None:
    return next((why for check in checks if (why := check(kept)) is not None), None)


def rename_state(names: Iterable[str], plan: PrunePlan, path: str) -> dict[str, str]:
    """Return {new name: old name} of the weights that stay, with the layers under `path` renumbered."""
    new_number = {old: new for new, old in enumerate(plan.kept)}
    renamed: dict[str, str] = {}
    for name in names:
        if not name.startswith(f"{path}."):
            renamed[name] = name
            continue
        number, dot, rest = name[len(path) + 1 :].partition(".")
        if int(number) in new_number:
            renamed[f"{path}.{new_number[int(number)]}{dot}{rest}"] = name
    return renamed


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


def packed_axis(config: PreTrainedConfig, had: Sequence[int], has: Sequence[int]) -> int | None:
    """Return the axis along which a tensor packs one part of each layer, from its shapes before and after a cut.

    `config` is the uncut model's. Gemma 3n and 4 keep the input embeddings of all layers in one table, and the
    projections to them in one matrix, layer after layer, `hidden_size_per_layer_input` numbers each.
    """
    part, layers = _packed_part(config), num_layers(config)
    changed = [axis for axis, (before, after) in enumerate(zip(had, has, strict=False)) if before != after]
    if not part or len(had) != len(has) or len(changed) != 1:
        return None
    axis = changed[0]
    return axis if had[axis] == part * layers and has[axis] % part == 0 else None


def packed_weights(model: PreTrainedModel) -> list[Tensor]:
    """Return the weights outside the layers that pack one part of each layer (see `packed_axis`)."""
    packed, path = _packed_part(model.config) * num_layers(model.config), layer_stack(model).path
    outside = ((name, weight) for name, weight in model.named_parameters() if not name.startswith(f"{path}."))
    return [weight for name, weight in outside if packed and "per_layer" in name and packed in weight.shape]


def _packed_part(config: PreTrainedConfig) -> int:
    return int(getattr(text_config(config), "hidden_size_per_layer_input", None) or 0)


def kept_parts(config: PreTrainedConfig, tensor: Tensor, like: Tensor, plan: PrunePlan) -> Tensor:
    """Return a tensor of the uncut model for the cut one, where it has the shape of `like`: itself, or its kept parts.

    A new tensor where parts of removed layers lie in it; itself too where the shapes differ for another reason.
    """
    axis = None if tensor.shape == like.shape else packed_axis(config, tensor.shape, like.shape)
    if axis is None:
        return tensor
    parts: Tensor = tensor.unflatten(axis, (plan.num_layers, -1))
    return parts.index_select(axis, torch.tensor(plan.kept, device=tensor.device)).flatten(axis, axis + 1)


# Reading the residual stream: forward pre-hooks that come and go with a context manager.


def hidden_argument(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the residual stream among the arguments of a layer call, shape (batch, tokens, hidden).

    AltUp's streams (gemma3n: a layer takes (streams, batch, tokens, hidden) and writes all of them) are one, side by
    side: what a layer changes is all of it.
    """
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, Tensor) or hidden.ndim not in (3, 4):
        raise ModelError(
            f"Layer {layer} does not take a (batch, tokens, hidden) residual stream; it cannot be measured."
        )
    return _side_by_side(hidden)


def hidden_output(output: Any) -> Tensor:
    """Return the residual stream that leaves a layer: most families return it bare, a few in a tuple."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return _side_by_side(hidden)


def _side_by_side(hidden: Tensor) -> Tensor:
    return hidden if hidden.ndim == 3 else hidden.permute(1, 2, 0, 3).flatten(2)


@contextmanager
def hooked_layers(
    layers: nn.ModuleList,
    enters: Callable[[int, tuple[Any, ...], dict[str, Any]], None],
    leaves: Callable[[Tensor], None],
) -> Iterator[None]:
    """Call `enters(i, args, kwargs)` before each layer, and `leaves(x)` behind the last, while the context lasts.

    Hooks are global to a module: hold the handle's lock around it. They are removed whatever happens inside.
    """

    def before(index: int) -> Callable[..., None]:
        return lambda _module, args, kwargs: enters(index, args, kwargs)

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.callback(layer.register_forward_pre_hook(before(index), with_kwargs=True).remove)
        last = layers[-1].register_forward_hook(lambda _module, _args, output: leaves(hidden_output(output)))
        hooks.callback(last.remove)
        yield


@contextmanager
def residual_boundaries(handle: ModelHandle, keep: Callable[[int, Tensor], None]) -> Iterator[nn.Module]:
    """Yield the decoder, without LM head; each forward pass of it calls `keep(i, x)` for every boundary i = 0..L.

    x is the live residual stream, shape (batch, tokens, hidden): copy what you need, the model goes on with it.
    Boundary L is the output of the last layer, before the final norm (the last entry of transformers' `hidden_states`
    is after it). Hooks are global to a module: hold `handle.lock` around the whole context. They are removed on the
    way out, whatever happens inside.
    """
    stack = layer_stack(handle.model)

    def enters(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(index, hidden_argument(index, args, kwargs))

    with hooked_layers(stack.layers, enters, lambda hidden: keep(len(stack.layers), hidden)):
        yield stack.decoder


@contextmanager
def stoppable(handle: ModelHandle, watch: Watch) -> Iterator[None]:
    """Raise Stopped out of a forward pass before its next layer, once asked to stop; hold `handle.lock` around it.

    A window of a slow model takes seconds, and whoever asked for another one should not wait for them.
    """

    def look(_module: nn.Module, _inputs: Any) -> None:
        watch.check("Stopped within a forward pass.")

    with ExitStack() as hooks:
        for layer in layer_stack(handle.model).layers if watch.stop is not None else ():
            hooks.callback(layer.register_forward_pre_hook(look).remove)
        yield


def widest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """Return the dtype that holds the values of all of these."""
    return reduce(torch.promote_types, dtypes)


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerCall:
    """What a layer was called with, but for the residual stream."""

    positional: bool
    """Whether the residual stream came first among the positional arguments."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    streams: int = 1
    """How many streams the layer takes, stacked in front; 1: no such dimension."""

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "LayerCall":
        """Return what a layer was called with."""
        hidden = args[0] if args else kwargs["hidden_states"]
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        streams = len(hidden) if hidden.ndim == 4 else 1
        return cls(positional=bool(args), args=args[1:], kwargs=rest, streams=streams)

    @property
    def store(self) -> MutableMapping[str, Any] | None:
        """Where layers leave keys and values for later ones (Gemma 3n and 4): one for all layers of a forward pass."""
        found = (value for value in self.kwargs.values() if isinstance(value, MutableMapping))
        return next(found, None)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "LayerCall":
        """Return the call with `change` of each tensor, in nested tuples and lists too; the store is the same."""

        def of(value: Any) -> Any:
            if isinstance(value, tuple | list):
                return type(value)(of(item) for item in value)
            return change(value) if isinstance(value, Tensor) else value

        kwargs = {name: of(value) for name, value in self.kwargs.items()}
        return replace(self, args=tuple(map(of, self.args)), kwargs=kwargs)

    def storing(self, store: MutableMapping[str, Any] | None) -> "LayerCall":
        """Return the call with another store in the place of its own; itself where it has none."""
        if store is None or self.store is None:
            return self
        own = {name: store if isinstance(value, MutableMapping) else value for name, value in self.kwargs.items()}
        return replace(self, kwargs=own)

    def native(self, hidden: Tensor) -> Tensor:
        """Return a residual stream, (batch, tokens, hidden), as the layer takes it."""
        if self.streams == 1:
            return hidden
        streams: Tensor = hidden.unflatten(2, (self.streams, -1))
        return streams.permute(2, 0, 1, 3).contiguous()

    def run(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """Return the layer's output for another residual stream, (batch, tokens, hidden)."""
        hidden = self.native(hidden)
        if self.positional:
            return hidden_output(layer(hidden, *self.args, **self.kwargs))
        return hidden_output(layer(*self.args, hidden_states=hidden, **self.kwargs))
