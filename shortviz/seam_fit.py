"""Fitting one module of a candidate to the uncut model's boundary: moments, a ridge from held-out rows, new weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shortviz.neurons import Neurons
from shortviz.progress import Watch
from shortviz.residual_writers import Writer, linear_weight, scale_features
from shortviz.seam_moments import Moments
from shortviz.seam_streams import STOPPED, PairedBatch, ProbedModules, probe_modules

Reads = Literal["inputs", "outputs"]
"""`inputs`: a new weight from what the module reads; `outputs`: a linear map behind what it gives, folded in."""
RIDGES = tuple(10.0 ** (step / 2) for step in range(-6, 5))
"""Tried on held-out rows, as shares of a feature's mean square: 0.001 to 100."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitTarget:
    """One layer that is to be fitted, and the boundary of the uncut model that it should reach."""

    layer: int
    """In the candidate's numbers."""
    boundary: int
    """In the uncut model's numbers."""
    writer: Writer
    """The module that writes last."""
    reads: Reads
    others: tuple[str, ...] = ()
    """Linear layers that add to the stream before the writer, mostly the attention's projection: refitted with it."""
    neurons: Neurons | None = None
    """Of the layer, where neurons of the removed layers may take their places."""

    @property
    def alone(self) -> "FitTarget":
        """The same without the others."""
        return replace(self, others=())

    @property
    def fits(self) -> int:
        """How many fits are tried with one set of neurons: the writer alone, and with the others."""
        return 2 if self.others else 1

    @property
    def modules(self) -> tuple[str, ...]:
        """What is fitted, the writer last."""
        return *self.others, self.writer.name


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fitted:
    """What least squares found for one target."""

    weights: dict[str, Tensor]
    """New weights by name in the layer."""
    ridge: float
    missed: float
    """Share of the wanted change's square, on held-out rows, that the new weights still miss."""
    tokens: int
    """Fitted on."""


def gather(
    layer: nn.Module,
    target: FitTarget,
    batches: Sequence[PairedBatch],
    number: int,
    watch: Watch,
    on_batch: Callable[[int], None],
) -> Moments:
    """Return the moments of a target over the batches, which stand at its layer; `number` is its uncut number."""
    module = layer.get_submodule(target.writer.name)
    hidden, device = batches[0].state.shape[-1], batches[0].state.device
    moments = Moments.scale_zeros(hidden, device=device) if target.writer.scale else None
    for batch in batches:
        watch.check(STOPPED)
        seen = probe_modules(layer, target.modules, batch, batch.calls[number])
        reached = batch.uncut_states[target.boundary][batch.real]
        wanted = (reached.double() - seen.output.double()) / target.writer.gain
        features = _features(module, target, seen)
        if moments is None:
            groups = [f.shape[-1] for f in features]
            moments = Moments.zeros(groups, hidden, bias=module.bias is not None, device=device)
        moments.add(torch.cat(features, dim=1), wanted, reached)
        on_batch(len(batch.ids))
    assert moments is not None
    return moments


@torch.inference_mode()
def _features(module: nn.Module, target: FitTarget, seen: ProbedModules) -> list[Tensor]:
    if target.writer.scale:
        return [scale_features(module, seen.entered[-1])]
    return seen.entered if target.reads == "inputs" else [seen.left]


def fit(layer: nn.Module, target: FitTarget, fit_on: Moments, held_out: Moments) -> Fitted:
    """Return the weights that least squares gives, with the ridge that misses least on held-out rows."""
    tried = [(held_out.missed(solution), ridge, solution) for ridge in RIDGES for solution in [fit_on.solve(ridge)]]
    missed, ridge, solution = min(tried, key=lambda found: found[0])
    weights: dict[str, Tensor] = {}
    at = 0
    for name in target.others:
        module = layer.get_submodule(name)
        inputs = linear_weight(module).shape[1]
        changed = _refitted(module, solution[at : at + inputs])
        weights |= {f"{name}.{leaf}": weight for leaf, weight in changed.items()}
        at += inputs
    module = layer.get_submodule(target.writer.name)
    change = _scaled if target.writer.scale else _refitted if target.reads == "inputs" else _folded
    weights |= {f"{target.writer.name}.{leaf}": weight for leaf, weight in change(module, solution[at:]).items()}
    return Fitted(weights=weights, ridge=ridge, missed=missed, tokens=fit_on.tokens)


def _scaled(module: nn.Module, solution: Tensor) -> dict[str, Tensor]:
    weight = module.get_parameter("weight")
    return {"weight": weight.double() + solution}


def _refitted(module: nn.Module, solution: Tensor) -> dict[str, Tensor]:
    """Add to weight and bias what was found on the module's inputs."""
    weight = linear_weight(module).double()
    inputs = weight.shape[1]
    return _as_stored(module, weight + solution[:inputs].T, solution[inputs:])


def _folded(module: nn.Module, solution: Tensor) -> dict[str, Tensor]:
    """Put the map M -> M + M solution behind the module into its weight and bias."""
    weight = linear_weight(module).double()
    outputs = len(weight)
    mixed = weight + solution[:outputs].T @ weight
    constant = solution[outputs:]
    if module.bias is not None:
        constant = constant + (module.get_parameter("bias").double() @ solution[:outputs])[None]
    return _as_stored(module, mixed, constant)


def _as_stored(module: nn.Module, weight: Tensor, constant: Tensor) -> dict[str, Tensor]:
    """Return the module's parameters; `constant`, (1, outputs) or (0, outputs), is added to its bias."""
    stored = {"weight": weight.T if isinstance(module, Conv1D) else weight}
    if module.bias is not None and len(constant):
        stored["bias"] = module.get_parameter("bias").double() + constant[0]
    return stored
