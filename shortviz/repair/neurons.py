"""A layer's neurons: the features that its last linear layer reads, one row of the linear layers before it each.

A neuron that reads the stream through a norm can be moved to another layer: its rows go along, times the ratio of the
two norms' weights, and its column of the last linear layer. Which modules these are is found by hooks, not by
family, as writers are (`find_writers`).
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shortviz.repair.probe import ModuleIO, Probe, Writer, hooked_modules, linear_weight

_TOLERANCE = 64
"""Units of the dtype's rounding."""
_PARTS = (1, 2)
_LARGEST_RATIO = 1e3
"""Between two norms' weights: a channel that one norm next to silences cannot be made up for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Neurons:
    """Where the neurons of a layer are; names in the layer."""

    norm: str
    """What they read the stream through."""
    inward: tuple[str, ...]
    """Linear layers with a row for each neuron, e.g. `mlp.gate_proj` and `mlp.up_proj`."""
    between: tuple[str, ...]
    """Modules that run between those and the writer: activations, which some families train layer by layer."""
    outward: str
    """The writer: a column for each neuron."""
    parts: int = 1
    """Rows that each neuron has in an inward linear layer: 2 where gate and up are stored in one (phi3), one half
    after the other."""

    def by_neuron(self, module: nn.Module, weight: Tensor) -> Tensor:
        """Return a view of an inward weight or bias, shape (neurons, parts, channels) or (neurons, parts)."""
        rows = weight.T if isinstance(module, Conv1D) and weight.ndim == 2 else weight
        return rows.view(self.parts, -1, *rows.shape[1:]).transpose(0, 1)


@torch.inference_mode()
def find_neurons(probe: Probe, writer: Writer) -> Neurons | None:
    """Return the neurons that a layer's writer reads, None where they are not rows of linear layers behind one norm.

    They are not for mamba mixers and mixtures of experts.
    """
    seen = probe.module_io()
    if writer.scale or writer.name not in seen:
        return None
    order = list(seen)
    for (norm, (found, _, normed)), parts in product(seen.items(), _PARTS):
        inward = tuple(
            name
            for name, reader in seen.items()
            if name != writer.name and _reads(reader, normed, parts * writer.inputs)
        )
        if not inward or isinstance(found, nn.Linear | Conv1D):
            continue
        inside = order[min(map(order.index, inward)) : order.index(writer.name)]
        between = tuple(name for name in inside if name not in inward)
        neurons = Neurons(norm=norm, inward=inward, between=between, outward=writer.name, parts=parts)
        if _follow(probe, neurons, seen):
            return neurons
    return None


def _reads(reader: ModuleIO, normed: Tensor, outputs: int) -> bool:
    """Tell whether a module is a linear layer that reads just this, with so many outputs."""
    module, entered, left = reader
    linear = isinstance(module, nn.Linear | Conv1D) and left.shape[-1] == outputs
    return linear and entered.shape == normed.shape and torch.equal(entered, normed)


def _follow(probe: Probe, neurons: Neurons, seen: Mapping[str, ModuleIO]) -> bool:
    """Tell whether the writer's features change places as the rows do, and nothing else changes."""
    features, left = seen[neurons.outward][1], probe.run()
    order = torch.randperm(features.shape[-1], generator=torch.Generator().manual_seed(0)).to(features.device)
    back, moved = order.argsort(), []

    def read(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        moved.append(args[0].clone())
        return (args[0][..., back], *args[1:])

    def move(_name: str, _args: tuple[Tensor, ...], left: Tensor) -> Tensor:
        return left.view(*left.shape[:-1], neurons.parts, -1)[..., order].flatten(-2)

    reader = probe.layer.get_submodule(neurons.outward).register_forward_pre_hook(read)
    try:
        with hooked_modules(probe.layer, neurons.inward, move):
            after = probe.run()
    finally:
        reader.remove()
    return _near(moved[0], features[..., order]) and _near(after, left)


def _near(found: Tensor, expected: Tensor) -> bool:
    missed, size = (found - expected).abs().amax(), expected.abs().amax()
    return bool(missed <= _TOLERANCE * torch.finfo(expected.dtype).eps * size)


@torch.inference_mode()
def as_read_by(layer: nn.Module, donor: nn.Module, neurons: Neurons) -> dict[str, Tensor] | None:
    """Return the inward weights and biases with which a layer has all neurons of another one, float64.

    None where the two differ in kind, or where a norm's bias would need one that the layer does not have.
    """
    if type(layer) is not type(donor) or not _alike(layer, donor, neurons):
        return None
    reads = linear_weight(layer.get_submodule(neurons.inward[0]))
    scales = _norm_ratio(layer.get_submodule(neurons.norm), donor.get_submodule(neurons.norm), reads)
    if scales is None:
        return None
    ratio, ours, theirs = scales
    found: dict[str, Tensor] = {}
    for name in neurons.inward:
        module = donor.get_submodule(name)
        weight = linear_weight(module).double()
        moved = weight * ratio
        shift = weight @ theirs - moved @ ours
        found[f"{name}.weight"] = moved.T if isinstance(module, Conv1D) else moved
        if module.bias is not None:
            found[f"{name}.bias"] = module.get_parameter("bias").double() + shift
        elif bool(shift.abs().amax() > 0):
            return None
    return found


def _alike(layer: nn.Module, donor: nn.Module, neurons: Neurons) -> bool:
    """Tell whether both have these modules, weights of the same shapes, and the same activation."""
    ours, theirs = dict(layer.named_modules()), dict(donor.named_modules())
    names = (neurons.norm, *neurons.inward, *neurons.between, neurons.outward)
    if not all(name in ours and name in theirs for name in names):
        return False
    for name in names:
        if type(ours[name]) is not type(theirs[name]):
            return False
        mine, other = ours[name].state_dict(), theirs[name].state_dict()
        if {leaf: w.shape for leaf, w in mine.items()} != {leaf: w.shape for leaf, w in other.items()}:
            return False
        if name in neurons.between and not all(torch.equal(mine[leaf], other[leaf]) for leaf in mine):
            return False
    return True


def _norm_ratio(ours: nn.Module, theirs: nn.Module, reads: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return (ratio, our bias, their bias), a number a channel: theirs(x) = (ours(x) - our bias) * ratio + their bias.

    None where the two are not related like that; `reads` is a weight that reads the channels. A norm turns x into
    scale * n(x) + bias, n odd; so what is odd and what is even in x gives scale and bias, in whatever form the family
    keeps them, and where it has none (olmo).
    """
    # Copies in float32 at least: in bfloat16 a bias would be lost in the rounding of what it is added to.
    dtype = torch.promote_types(reads.dtype, torch.float32)
    x = torch.randn(4, reads.shape[1], generator=torch.Generator().manual_seed(0)).to(reads.device, dtype)
    odd, even = zip(*(_parts(copy.deepcopy(norm).to(dtype), x) for norm in (ours, theirs)), strict=True)
    ratio = (odd[1] * odd[0]).sum(0) / odd[0].square().sum(0)
    ratio = ratio.where(odd[1].abs().amax(0) > 0, 0.0)  # what both silence is no obstacle
    missed = (odd[1] - ratio * odd[0]).abs()
    size = torch.maximum(odd[1].abs().amax(0), (ratio * odd[0]).abs().amax(0))
    fits = bool((missed <= _TOLERANCE * torch.finfo(dtype).eps * size).all())
    return (ratio, even[0][0], even[1][0]) if fits and bool(ratio.abs().amax() < _LARGEST_RATIO) else None


def _parts(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    there, back = norm(x).double(), norm(-x).double()
    even = (there + back) / 2
    return (there - back) / 2, torch.where(even.abs() > _TOLERANCE * torch.finfo(x.dtype).eps * there.abs(), even, 0.0)
