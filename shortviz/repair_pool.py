"""Pooled neurons: the layer before a seam takes over those neurons of the removed layers that write most.

The removed layers' MLPs read a residual stream that is close to what the layer before the seam reads. So their neurons
and its own compete for its places: a neuron counts by the mean square of what it writes, relative to the state that
should be reached. What they write is then refitted as any seam is. The layer keeps its size: the checkpoint is stock.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shortviz.neurons import Neurons, as_read_by
from shortviz.new_weights import put_weights, take_back
from shortviz.residual_writers import linear_weight
from shortviz.seam_fit import Site
from shortviz.seam_moments import in_float64, token_weights
from shortviz.seam_streams import Stream, visit


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pool:
    """Neurons that compete for the places of one layer."""

    neurons: Neurons
    inward: tuple[dict[str, Tensor], ...]
    """Weights before the neurons, by name in the layer: the layer's own first, then each removed layer's."""
    columns: tuple[Tensor, ...]
    """(hidden, neurons) each: what they write, in the same order."""


def open_pool(layer: nn.Module, donors: Sequence[nn.Module], neurons: Neurons) -> Pool | None:
    """Return the neurons of a layer and of removed ones as the layer would read them; None where no donor is alike."""
    own = {
        f"{name}.{leaf}": parameter.detach()
        for name in neurons.inward
        for leaf, parameter in layer.get_submodule(name).named_parameters()
    }
    given = [(weights, donor) for donor in donors if (weights := as_read_by(layer, donor, neurons)) is not None]
    if not given:
        return None
    columns = [linear_weight(part.get_submodule(neurons.outward)) for part in (layer, *(donor for _, donor in given))]
    return Pool(neurons=neurons, inward=(own, *(weights for weights, _ in given)), columns=tuple(columns))


@torch.inference_mode()
def choose(
    pool: Pool, layer: nn.Module, site: Site, streams: Sequence[Stream], number: int, tell: Callable[[int], None]
) -> tuple[dict[str, Tensor], int] | None:
    """Return the layer's weights with the neurons that write most, and how many are not its own; None where none is.

    The layer is left as it was. `tell` is told of the rows of every batch, and may raise to stop.
    """
    squares = []
    for weights in pool.inward:
        old = put_weights(layer, weights)
        try:
            squares.append(_written(layer, site, streams, number, tell))
        finally:
            take_back(layer, old)
    sizes = [in_float64(columns).square().sum(0) for columns in pool.columns]
    scores = torch.cat(squares) * torch.cat(sizes)
    places = len(squares[0])
    best = scores.argsort(descending=True, stable=True)[:places]  # stable: of equals, the layer's own
    # Own neurons stay where they are, so that a weight changes only where another neuron moves in.
    kept = torch.zeros(places, dtype=torch.bool, device=best.device)
    kept[best[best < places]] = True
    free, taken = (~kept).nonzero()[:, 0], best[best >= places].sort().values
    return (_mixed(pool, layer, free, taken), len(taken)) if len(taken) else None


def _written(
    layer: nn.Module, site: Site, streams: Sequence[Stream], number: int, tell: Callable[[int], None]
) -> Tensor:
    """Return the sum over tokens of each feature's square, relative to the state that should be reached; float64."""
    total: Tensor | None = None
    for stream in streams:
        features = in_float64(visit(layer, (site.writer.name,), stream, stream.calls[number]).entered[0])
        weights = token_weights(in_float64(stream.targets[site.boundary][stream.real]))
        found = (features * weights).square().sum(0)
        total = found if total is None else total + found
        tell(len(stream.ids))
    assert total is not None
    return total


def _mixed(pool: Pool, layer: nn.Module, free: Tensor, taken: Tensor) -> dict[str, Tensor]:
    """Return the layer's inward and outward weights with the taken neurons of the pool in its free places."""
    found: dict[str, Tensor] = {}
    for name, own in pool.inward[0].items():
        module = layer.get_submodule(name.rpartition(".")[0])
        turned = isinstance(module, Conv1D) and own.ndim == 2
        rows = [in_float64(_turned(part[name], turned)) for part in pool.inward]
        found[name] = _turned(_filled(rows, free, taken), turned)
    columns = [in_float64(c.T) for c in pool.columns]
    weight = _filled(columns, free, taken).T
    conv = isinstance(layer.get_submodule(pool.neurons.outward), Conv1D)
    return found | {f"{pool.neurons.outward}.weight": _turned(weight, conv)}


def _turned(weight: Tensor, turned: bool) -> Tensor:
    return weight.T if turned else weight


def _filled(parts: Sequence[Tensor], free: Tensor, taken: Tensor) -> Tensor:
    whole = parts[0].clone()
    whole[free] = torch.cat(list(parts))[taken]
    return whole
