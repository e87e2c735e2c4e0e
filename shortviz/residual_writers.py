"""Which modules of a layer write into the residual stream that leaves it: found by hooks, not by family.

A writer is a module whose output the layer only adds: when its output moves by d, what leaves the layer moves by
gain * d. In most families that is the MLP's last projection, with gain 1; granite and falcon_h1 scale it; in parallel
families (phi, falcon, gpt_neox) the attention's projection is one too; in mamba it is the mixer's. Where a norm
follows the MLP (gemma2, olmo2) the norm's scale is the only weight left that writes linearly; mixtures of experts have
no linear writer at all. The attention's projection of a sequential layer is none: the MLP reads what it wrote.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shortviz.watching import Probe

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
            if is_kind(module, args, output) and (gain := _gain(probe, module, output)) is not None
        ]
        if found:
            return tuple(sorted(reversed(found), key=lambda writer: -writer.inputs))
    return ()


def _gain(probe: Probe, module: nn.Module, output: Tensor) -> float | None:
    """Return how much the layer's output moves with the module's, None where it does not simply move along."""
    before = probe.run()
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(0)).to(before)
    move = noise * before.float().square().mean(-1, keepdim=True).sqrt().to(before.dtype)
    hook = module.register_forward_hook(lambda _m, _a, out: out + move.view_as(out))
    try:
        moved = probe.run()
    finally:
        hook.remove()
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
    once, twice = (_with_weight(module, weight + step, entered).double() for step in (1.0, 2.0))
    return _equal(2 * once - left.double(), twice, left.dtype) and not torch.equal(once, left.double())


def scale_features(module: nn.Module, entered: Tensor) -> Tensor:
    """Return by how much a norm's output moves when each channel's weight grows by 1, same shape as its output.

    In float32 at least: a step of 1 beside a weight of 20 is a difference of two roundings in bfloat16.
    """
    dtype = torch.promote_types(entered.dtype, torch.float32)
    wide = {name: weight.to(dtype) for name, weight in module.named_parameters()}
    once, twice = (
        torch.func.functional_call(module, wide | {"weight": wide["weight"] + step}, (entered.to(dtype),))
        for step in (0.0, 1.0)
    )
    found: Tensor = twice - once
    return found


def _with_weight(module: nn.Module, weight: Tensor, entered: Tensor) -> Tensor:
    left: Tensor = torch.func.functional_call(module, {"weight": weight}, (entered,))
    return left


def _equal(expected: Tensor, left: Tensor, dtype: torch.dtype) -> bool:
    rounding = 8 * _ROUNDING * torch.finfo(dtype).eps
    missed, scale = (expected - left).abs().amax(-1), expected.abs().amax(-1)
    return bool((missed <= rounding * scale).all())


def linear_weight(module: nn.Module) -> Tensor:
    """Return the weight of a linear layer as (outputs, inputs); gpt2's Conv1D keeps it the other way round."""
    weight = module.get_parameter("weight")
    return weight.T if isinstance(module, Conv1D) else weight
