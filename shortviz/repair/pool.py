"""Pooled neurons: the layer before a seam takes over those neurons of the removed layers that write most.

The removed layers' MLPs read a residual stream that is close to what the layer before the seam reads. So their neurons
and its own compete for its places: a neuron counts by the mean square of what it writes, relative to the state that
should be reached. What they write is then refitted as any seam is. The layer keeps its size: the checkpoint is stock.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shortviz.repair.batches import PairedBatch, probe_modules
from shortviz.repair.fit import FitTarget, token_weights, weights_tried
from shortviz.repair.neurons import Neurons, as_read_by
from shortviz.repair.probe import linear_weight

_SAME = 1e-12
"""Two neurons are one where their rows' products with a random vector differ by less, relative to the largest."""


@torch.inference_mode()
def choose(
    layer: nn.Module,
    removed: Sequence[nn.Module],
    target: FitTarget,
    batches: Sequence[PairedBatch],
    number: int,
    tell: Callable[[int], None],
) -> tuple[dict[str, Tensor], int] | None:
    """Return the layer's weights with the neurons that write most, and how many are not its own; None where none is.

    The layer is left as it was; of the removed layers' weights, one layer's at a time is held in float64. `tell` is
    told of the rows of every batch, and may raise to stop.
    """
    assert target.neurons is not None
    scores, donors = [_written(layer, target, batches, number, tell) * _column_squares(layer, target.neurons)], []
    for donor in removed:
        weights = as_read_by(layer, donor, target.neurons)
        if weights is None:
            continue
        with weights_tried(layer, weights):
            found = _written(layer, target, batches, number, tell) * _column_squares(donor, target.neurons)
        found[_known(layer, target.neurons, weights) | ~found.isfinite()] = -1.0  # float16 may overflow in this layer
        donors.append(donor)
        scores.append(found)
    places = len(scores[0])
    best = torch.cat(scores).argsort(descending=True, stable=True)[:places]  # stable: of equals, the layer's own
    # Own neurons stay where they are, so that a weight changes only where another neuron moves in.
    kept = torch.zeros(places, dtype=torch.bool, device=best.device)
    kept[best[best < places]] = True
    free, taken = (~kept).nonzero()[:, 0], best[best >= places].sort().values - places
    return (_mixed(layer, donors, target.neurons, free, taken), len(taken)) if len(taken) else None


def _written(
    layer: nn.Module, target: FitTarget, batches: Sequence[PairedBatch], number: int, tell: Callable[[int], None]
) -> Tensor:
    """Return the sum over tokens of each feature's square, relative to the state that should be reached; float64."""
    total: Tensor | None = None
    for batch in batches:
        features = probe_modules(layer, (target.writer.name,), batch, batch.calls[number]).entered[0].double()
        weights = token_weights(batch.uncut_states[target.boundary][batch.real].double())
        found = (features * weights).square().sum(0)
        total = found if total is None else total + found
        tell(len(batch.ids))
    assert total is not None
    return total


def _column_squares(layer: nn.Module, neurons: Neurons) -> Tensor:
    return linear_weight(layer.get_submodule(neurons.outward)).double().square().sum(0)


def _known(layer: nn.Module, neurons: Neurons, weights: dict[str, Tensor]) -> Tensor:
    """Tell which neurons of these weights the layer has already, from a repair before: twice, they would write once."""
    name = f"{neurons.inward[0]}.weight"
    module = layer.get_submodule(neurons.inward[0])
    stored = weights[name].to(module.get_parameter("weight").dtype)
    ours, theirs = (neurons.by_neuron(module, w).flatten(1).double() for w in (module.get_parameter("weight"), stored))
    vector = torch.randn(ours.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    have, given = (ours @ vector.to(ours.device)).sort().values, theirs @ vector.to(theirs.device)
    after = torch.searchsorted(have, given).clamp_max(len(have) - 1)
    apart = torch.stack([(have[at] - given).abs() for at in (after, (after - 1).clamp_min(0))]).amin(0)
    return apart <= _SAME * have.abs().amax()


def _mixed(
    layer: nn.Module, donors: Sequence[nn.Module], neurons: Neurons, free: Tensor, taken: Tensor
) -> dict[str, Tensor]:
    """Return the layer's inward and outward weights with the taken neurons in its free places.

    `taken` counts through all donors' neurons.
    """
    modules = {name: layer.get_submodule(name) for name in (*neurons.inward, neurons.outward)}
    found = {
        f"{name}.{leaf}": parameter.double().clone()
        for name, module in modules.items()
        for leaf, parameter in module.named_parameters()
        if name in neurons.inward or leaf == "weight"
    }
    whole = f"{neurons.outward}.weight"
    places = linear_weight(modules[neurons.outward]).shape[1]
    for index, donor in enumerate(donors):
        here = taken // places == index
        rows, slots = taken[here] % places, free[here]
        if not len(rows):
            continue
        for name, given in (as_read_by(layer, donor, neurons) or {}).items():
            module = modules[name.rpartition(".")[0]]
            neurons.by_neuron(module, found[name])[slots] = neurons.by_neuron(module, given)[rows]
        columns = linear_weight(donor.get_submodule(neurons.outward))[:, rows]
        ours = found[whole].T if isinstance(modules[neurons.outward], Conv1D) else found[whole]
        ours[:, slots] = columns.double()
    return found
