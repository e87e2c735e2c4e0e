"""One layer on a short input, and what its modules read and give there, seen through hooks.

In half precision a rounding of 0.4 % hides what is asked: whether an output moves exactly as a module's does. So a
layer of a narrower model is probed as a float32 copy.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shortviz.architectures import layer_stack
from shortviz.handle import ModelHandle
from shortviz.replay import LayerCall, Recording, record

_TOKENS = 12
ModuleIO = tuple[nn.Module, Tensor, Tensor]
"""A module, its first argument and its output, as a hook records them."""


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

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                    calls.setdefault(name, []).append((module, args[0].clone(), output.clone()))

            return hook

        with ExitStack() as hooks:
            for name, module in self.layer.named_modules():
                if name and next(module.children(), None) is None:
                    hooks.callback(module.register_forward_hook(keep(name)).remove)
            self.run()
        return {name: found[0] for name, found in calls.items() if len(found) == 1}


def short_recording(handle: ModelHandle) -> Recording:
    """Return a pass of a model over a few tokens, for probes."""
    return record(handle, torch.arange(_TOKENS) % (handle.info.vocab_size - 1) + 1)


@torch.no_grad()
def open_probe(handle: ModelHandle, layer: int, recording: Recording | None = None) -> Probe:
    """Return a layer of a model on a short input (a `short_recording`); the caller holds the handle's lock."""
    found = short_recording(handle) if recording is None else recording
    module, call = layer_stack(handle.model).layers[layer], found.calls[layer]
    entering = found.boundaries[layer].clone()
    kinds = {tensor.dtype for tensor in (entering, *module.parameters()) if tensor.is_floating_point()}
    dtype = max((*kinds, torch.float32), key=lambda kind: kind.itemsize)
    if kinds == {dtype}:
        return Probe(layer=module, call=call, entering=entering)
    kwargs = {name: _widened(value, dtype) for name, value in call.kwargs.items()}
    call = LayerCall(positional=call.positional, args=_widened(call.args, dtype), kwargs=kwargs)
    return Probe(layer=copy.deepcopy(module).to(dtype), call=call, entering=entering.to(dtype))


def _widened(value: Any, dtype: torch.dtype) -> Any:
    """Return an argument of a layer with its tensors of fractions in another dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        widened = [_widened(each, dtype) for each in value]
        return widened if isinstance(value, list) else tuple(widened)
    if isinstance(value, dict):
        return {name: _widened(each, dtype) for name, each in value.items()}
    return value
