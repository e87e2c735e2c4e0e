"""Fitting one module of a candidate to the uncut model's boundary: moments, a ridge from held-out rows, new weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shortviz.errors import NumericsError
from shortviz.model.prune import put_weights, restore_weights
from shortviz.repair.batches import PairedBatch, probe_modules
from shortviz.repair.neurons import Neurons
from shortviz.repair.probe import Writer, linear_weight, scale_features


@contextmanager
def weights_tried(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Have weights in a model of one's own while the context lasts."""
    old = put_weights(model, weights)
    try:
        yield
    finally:
        restore_weights(model, old)


@dataclass(kw_only=True, slots=True, eq=False)
class Moments:
    """Sums in float64, over tokens, of features x that a module reads and gains y that its output should have.

    Nothing else is kept of a batch: features^2 + features x hidden numbers of 8 bytes (26 MB for the demo model's 1,536
    features, 1.3 GB for a 7B model's 11,008), whatever the length of the text.
    """

    xx: Tensor
    """(features, features); for a scale, whose channels are fitted one by one, (hidden,)."""
    xy: Tensor
    """(features, hidden); for a scale (hidden,)."""
    bias: bool
    """The last feature is the constant 1."""
    groups: tuple[int, ...] = ()
    """Features of each module read, in order; the ridge is measured by each group's own size."""
    yy: float = 0.0
    tokens: int = 0

    @classmethod
    def zeros(cls, groups: Sequence[int], hidden: int, *, bias: bool, device: torch.device) -> "Moments":
        """Return sums of nothing: for new weights of so many features each, without groups for one number a channel."""
        whole = sum(groups) + bias
        shapes = ((whole, whole), (whole, hidden)) if groups else ((hidden,), (hidden,))
        xx, xy = (torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes)
        return cls(xx=xx, xy=xy, bias=bias, groups=tuple(groups))

    def add(self, features: Tensor, gains: Tensor, reached: Tensor) -> None:
        """Add tokens: features (tokens, features) and what the module's output should gain, (tokens, hidden).

        Each counts by the square of its weight (`token_weights`) for the state it should reach, (tokens, hidden).

        Raises NumericsError for NaN or Inf.
        """
        x, y, size = features.double(), gains.double(), reached.double()
        weight = token_weights(size)
        x, y, one = x * weight, y * weight, weight
        square = float(y.square().sum()) + 0.0 * float(x.sum())
        if square != square or square == float("inf"):
            raise NumericsError(
                "The states at the seam are NaN or Inf on the text to fit on; check the weights, or load the model "
                "with dtype float32."
            )
        if self.xx.ndim == 1:
            self.xx += x.square().sum(0)
            self.xy += (x * y).sum(0)
        else:
            x = torch.cat([x, one], dim=1) if self.bias else x
            self.xx.addmm_(x.T, x)
            self.xy.addmm_(x.T, y)
        self.yy += square
        self.tokens += len(x)

    def last_group(self) -> "Moments":
        """Return the moments of the last group of features alone, with the constant."""
        if len(self.groups) < 2:
            return self
        first = sum(self.groups[:-1])
        return replace(self, xx=self.xx[first:, first:], xy=self.xy[first:], groups=self.groups[-1:])

    def missed(self, solution: Tensor) -> float:
        """Return the share of the wanted gains' square that a solution does not give; 1 for doing nothing."""
        applied = self.xx * solution if self.xx.ndim == 1 else self.xx @ solution
        return float(self.yy - 2 * (solution * self.xy).sum() + (solution * applied).sum()) / max(self.yy, 1e-300)

    def solve(self, ridge: float) -> Tensor:
        """Return what least squares with a ridge gives, (features, hidden) or, for a scale, (hidden,).

        The ridge is a share of the mean square of a group's features; it pulls towards no change. A constant is not
        held back.
        """
        if self.xx.ndim == 1:
            return self.xy / (self.xx + ridge * self.xx.mean() + 1e-300)
        held, at = self.xx.clone(), 0
        for count in self.groups:
            square = self.xx.diagonal()[at : at + count].mean()
            held.diagonal()[at : at + count] += ridge * square + torch.finfo(torch.float32).tiny
            at += count
        factor, failed = torch.linalg.cholesky_ex(held)
        if bool(failed):  # features that depend on each other, and next to no ridge
            return Tensor(torch.linalg.lstsq(held, self.xy, driver="gelsd").solution)
        solution: Tensor = torch.cholesky_solve(self.xy, factor)
        return solution


def token_weights(reached: Tensor) -> Tensor:
    """Return by what each token's errors are multiplied, (tokens, 1): the inverse size of the state it should reach.

    What follows is a norm, so errors matter by their share of the state. The attention sink's state is a hundred times
    larger than others, and would else be all that is fitted; left out, the sink would be lost.
    """
    return reached.square().mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny).rsqrt()


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
    tokens: int
    """Fitted on."""


def gather(
    layer: nn.Module, target: FitTarget, batches: Sequence[PairedBatch], number: int, tell: Callable[[int], None]
) -> Moments:
    """Return the moments of a target over the batches, which stand at its layer; `number` is its uncut number.

    `tell` is told of the rows of every batch, and may raise to stop.
    """
    module, scale = layer.get_submodule(target.writer.name), target.writer.scale
    moments: Moments | None = None
    for batch in batches:
        seen = probe_modules(layer, target.modules, batch, batch.calls[number])
        reached = batch.uncut_states[target.boundary][batch.real]
        wanted = (reached.double() - seen.output.double()) / target.writer.gain
        if scale:
            features = [scale_features(module, seen.entered[-1])]
        else:
            features = seen.entered if target.reads == "inputs" else [seen.left]
        if moments is None:
            groups = [] if scale else [f.shape[-1] for f in features]
            bias = not scale and module.bias is not None
            moments = Moments.zeros(groups, wanted.shape[-1], bias=bias, device=wanted.device)
        moments.add(torch.cat(features, dim=1), wanted, reached)
        tell(len(batch.ids))
    assert moments is not None
    return moments


def fit(layer: nn.Module, target: FitTarget, fit_on: Moments, held_out: Moments) -> Fitted:
    """Return the weights that least squares gives, with the ridge that misses least on held-out rows."""
    tried = [(held_out.missed(solution), ridge, solution) for ridge in RIDGES for solution in [fit_on.solve(ridge)]]
    _, ridge, solution = min(tried, key=lambda found: found[0])
    change = _scaled if target.writer.scale else _refitted if target.reads == "inputs" else _folded
    inputs = [linear_weight(layer.get_submodule(name)).shape[1] for name in target.others]
    parts = solution.split([*inputs, len(solution) - sum(inputs)])
    weights: dict[str, Tensor] = {}
    for name, part in zip(target.modules, parts, strict=True):
        weights |= {f"{name}.{leaf}": new for leaf, new in change(layer.get_submodule(name), part).items()}
    return Fitted(weights=weights, ridge=ridge, tokens=fit_on.tokens)


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
