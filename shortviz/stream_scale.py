"""Which linear layers of a decoder layer have to be divided by a for its output to follow a stream divided by a.

A pre-norm layer f(x) = x + attention(norm x) + mlp(norm ...) forgets the size of what it reads, not of what it adds to.
With its adding layers divided by a, a * f'(x) = f(a * x): the model goes on as if x had been a times larger.
Found by trying sets of linear layers on a short input, so that no family needs a table.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import combinations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shortviz.watching import Probe

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

    `known` are names that did in another layer, tried first.
    """
    entering = probe.entering
    x = entering / entering.square().mean(-1, keepdim=True).sqrt() * _LARGE
    expected = probe.call.run(probe.layer, _TRIED * x)
    names = [
        name
        for name, module in probe.layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and _outputs(module) == entering.shape[-1]
    ]
    tried = [tuple(known), *(s for count in (2, 1, 3) for s in combinations(reversed(names), count))]
    for chosen in tried[: 2**_MOST]:
        if chosen and set(chosen) <= set(names) and _does(probe, chosen, x, expected):
            return chosen
    return ()


def _outputs(module: nn.Linear | Conv1D) -> int:
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)


def _does(probe: Probe, names: Sequence[str], x: Tensor, expected: Tensor) -> bool:
    def divided() -> Callable[..., Tensor]:
        return lambda _module, _args, output: output / _TRIED

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(probe.layer.get_submodule(name).register_forward_hook(divided()).remove)
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
