"""Which modules of a layer write into the residual stream that leaves it: found by hooks, not by family.

A writer is a module whose output the layer only adds: when its output moves by d, what leaves the layer moves by
gain * d. In most families that is the MLP's last projection, with gain 1; granite and falcon_h1 scale it; in parallel
families (phi, falcon, gpt_neox) the attention's projection is one too; in mamba it is the mixer's. Where a norm
follows the MLP (gemma2, olmo2) the norm's scale is the only weight left that writes linearly; mixtures of experts have
no linear writer at all. The attention's projection of a sequential layer is none: the MLP reads what it wrote.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shortviz.measure.replay import Recording, record
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import LayerCall, layer_stack

_TOKENS = 12
ModuleIO = tuple[nn.Module, Tensor, Tensor]
"""A module, its first argument and its output, as a hook records them."""


@contextmanager
def hooked_modules(
    layer: nn.Module, names: Iterable[str], hook: Callable[[str, tuple[Any, ...], Any], Any]
) -> Iterator[None]:
    """Call `hook(name, args, output)` behind each of a layer's modules; what it returns takes the output's place."""

    def named(name: str) -> Callable[..., Any]:
        return lambda _module, args, output: hook(name, args, output)

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(layer.get_submodule(name).register_forward_hook(named(name)).remove)
        yield


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Probe:
    """One layer on a short input."""

    layer: nn.Module
    """The model's own, or a copy in float32 where the model is in half precision (on the CPU for an MPS model)."""
    call: LayerCall
    entering: Tensor

    def run(self) -> Tensor:
        """Return what leaves the layer."""
        return self.call.run(self.layer, self.entering.clone())

    def module_io(self) -> dict[str, ModuleIO]:
        """Return name -> what was seen of each module without children that runs once, in the order of running."""
        calls: dict[str, list[ModuleIO]] = {}
        modules = {name: m for name, m in self.layer.named_modules() if name and next(m.children(), None) is None}

        def keep(name: str, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                calls.setdefault(name, []).append((modules[name], args[0].clone(), output.clone()))

        with hooked_modules(self.layer, modules, keep):
            self.run()
        return {name: found[0] for name, found in calls.items() if len(found) == 1}


def short_recording(handle: ModelHandle) -> Recording:
    """Return a pass of a model over a few tokens, for probes."""
    return record(handle, torch.arange(_TOKENS) % (handle.info.vocab_size - 1) + 1)


@torch.no_grad()
def open_probe(handle: ModelHandle, layer: int, recording: Recording | None = None) -> Probe:
    """Return a layer of a model on a short input (a `short_recording`); the caller holds the handle's lock.

    In half precision a rounding of 0.4 % hides what is asked: whether an output moves exactly as a module's does. So a
    layer of a narrower model is probed as a float32 copy.
    """
    found = short_recording(handle) if recording is None else recording
    module, call = layer_stack(handle.model).layers[layer], found.calls[layer]
    entering = found.boundaries[layer].clone()
    kinds = {tensor.dtype for tensor in (entering, *module.parameters()) if tensor.is_floating_point()}
    dtype = max((*kinds, torch.float32), key=lambda kind: kind.itemsize)
    if kinds == {dtype}:
        return Probe(layer=module, call=call, entering=entering)

    def widened(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    args, kwargs = recursively_apply(widened, (call.args, call.kwargs))
    call = replace(call, args=args, kwargs=kwargs)
    return Probe(layer=copy.deepcopy(module).to(dtype), call=call, entering=entering.to(dtype))


_ROUNDING = 32
"""A writer's effect may differ from gain * d by this many units of the dtype's rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Writer:
    """A module whose output is added to the residual stream."""

    name: str
    """In its layer, e.g. `mlp.down_proj`."""
    gain: float
    """What leaves the layer moves by this times what the module's output moves."""
    inputs: int
    """Features it reads; for a norm's scale, channels."""
    scale: bool = False
    """True: a norm behind the MLP, whose one weight a channel is linear; False: a linear layer."""


@torch.no_grad()
def find_writers(probe: Probe) -> tuple[Writer, ...]:
    """Return the writers of a layer, the one with the most inputs first; the last called of equals.

    Linear layers where there is one; otherwise norms behind the MLP; empty where the layer has neither.
    """
    size = probe.entering.numel()
    seen = {name: found for name, found in probe.module_io().items() if found[2].numel() == size}
    for is_kind, scale in ((_is_linear, False), (_is_scale, True)):
        found = [
            Writer(name=name, gain=gain, inputs=args.shape[-1], scale=scale)
            for name, (module, args, output) in seen.items()
            if is_kind(module, args, output) and (gain := _gain(probe, name)) is not None
        ]
        if found:
            return tuple(sorted(reversed(found), key=lambda writer: -writer.inputs))
    return ()


def _gain(probe: Probe, name: str) -> float | None:
    """Return how much the layer's output moves with the module's, None where it does not simply move along."""
    before = probe.run()
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(0)).to(before)
    move = noise * before.float().square().mean(-1, keepdim=True).sqrt().to(before.dtype)
    with hooked_modules(probe.layer, (name,), lambda _name, _args, output: output + move.view_as(output)):
        moved = probe.run()
    change, step = (moved.double() - before.double()), move.double()
    gain = float((change * step).sum() / step.square().sum())
    scale = torch.maximum(before.abs(), moved.abs()).double().amax(-1) + step.abs().amax(-1)
    missed = (change - gain * step).abs().amax(-1)
    rounding = _ROUNDING * torch.finfo(before.dtype).eps
    return gain if abs(gain) > 1e-3 and bool((missed <= rounding * scale).all()) else None


def _is_linear(module: nn.Module, entered: Tensor, left: Tensor) -> bool:
    """Tell whether the module is a linear layer, and does just what its weights say (quantising ones do more)."""
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    weight, bias = linear_weight(module).double(), module.bias
    expected = entered.double() @ weight.T + (0.0 if bias is None else bias.double())
    return _equal(expected, left, left.dtype)


def _is_scale(module: nn.Module, entered: Tensor, left: Tensor) -> bool:
    """Tell whether the module's output is affine in its weight, one number a channel; some add 1 to it."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.shape != left.shape[-1:]:
        return False
    once, twice = (_with_weights(module, {"weight": weight + step}, entered).double() for step in (1.0, 2.0))
    return _equal(2 * once - left.double(), twice, left.dtype) and not torch.equal(once, left.double())


def scale_features(module: nn.Module, entered: Tensor) -> Tensor:
    """Return by how much a norm's output moves when each channel's weight grows by 1, same shape as its output.

    In float32 at least: a step of 1 beside a weight of 20 is a difference of two roundings in bfloat16.
    """
    dtype = torch.promote_types(entered.dtype, torch.float32)
    wide = {name: weight.to(dtype) for name, weight in module.named_parameters()}
    more = wide | {"weight": wide["weight"] + 1.0}
    return _with_weights(module, more, entered.to(dtype)) - _with_weights(module, wide, entered.to(dtype))


def _with_weights(module: nn.Module, weights: dict[str, Tensor], entered: Tensor) -> Tensor:
    left: Tensor = torch.func.functional_call(module, weights, (entered,))
    return left


def _equal(expected: Tensor, left: Tensor, dtype: torch.dtype) -> bool:
    rounding = 8 * _ROUNDING * torch.finfo(dtype).eps
    missed, scale = (expected - left).abs().amax(-1), expected.abs().amax(-1)
    return bool((missed <= rounding * scale).all())


def linear_weight(module: nn.Module) -> Tensor:
    """Return the weight of a linear layer as (outputs, inputs); gpt2's Conv1D keeps it the other way round."""
    weight = module.get_parameter("weight")
    return weight.T if isinstance(module, Conv1D) else weight


_TRIED = 1.7
"""A factor to try with."""
_LARGE = 100.0
"""Size of the states to try with, so that a norm's epsilon does not count."""
_TOLERANCE = 2e-3
"""Of what the layer adds."""
_MOST = 6


@torch.inference_mode()
def adding_layers(probe: Probe, known: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of the linear layers that add to the stream, with biases; empty where no set of them will do.

    A pre-norm layer f(x) = x + attention(norm x) + mlp(norm ...) forgets the size of what it reads, not of what it adds
    to. With its adding layers divided by a, a * f'(x) = f(a * x): the model goes on as if x had been a times larger.
    Found by trying sets of linear layers on a short input, so that no family needs a table; `known` are names that did
    in another layer, tried first.
    """
    entering = probe.entering
    x = entering / entering.square().mean(-1, keepdim=True).sqrt() * _LARGE
    expected = probe.call.run(probe.layer, _TRIED * x)
    names = [
        name
        for name, module in probe.layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and len(linear_weight(module)) == entering.shape[-1]
    ]
    tried = [tuple(known), *(s for count in (2, 1, 3) for s in combinations(reversed(names), count))]
    for chosen in tried[: 2**_MOST]:
        if chosen and set(chosen) <= set(names) and _does(probe, chosen, x, expected):
            return chosen
    return ()


def _does(probe: Probe, names: Sequence[str], x: Tensor, expected: Tensor) -> bool:
    with hooked_modules(probe.layer, names, lambda _name, _args, output: output / _TRIED):
        found = _TRIED * probe.call.run(probe.layer, x.clone())
    added = (expected - _TRIED * x).abs().amax()
    rounding = 16 * torch.finfo(x.dtype).eps * expected.abs().amax()
    return bool(((found - expected).abs() <= _TOLERANCE * added + rounding).all())


def divided_weights(layer: nn.Module, names: Sequence[str], factor: float) -> dict[str, Tensor]:
    """Return new weights and biases of these linear layers, divided by the factor."""
    found = {}
    for name in names:
        for leaf, parameter in layer.get_submodule(name).named_parameters(recurse=False):
            found[f"{name}.{leaf}"] = parameter.double() / factor
    return found
