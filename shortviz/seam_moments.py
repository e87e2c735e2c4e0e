"""Second moments at a seam: what a module reads, and what its output should gain, summed over tokens in float64.

Nothing is kept of a batch but its share of the sums: features^2 + features x hidden numbers of 8 bytes (26 MB for the
demo model's 1,536 features, 1.3 GB for a 7B model's 11,008), whatever the length of the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shortviz.errors import NumericsError


@dataclass(kw_only=True, slots=True, eq=False)
class Moments:
    """Sums over tokens of features x and wanted gains y: what least squares needs, whatever the number of tokens."""

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
        """Return sums of nothing, for new weights of so many features each."""
        whole = sum(groups) + bias
        xx, xy = _zeros(device, whole, whole), _zeros(device, whole, hidden)
        return cls(xx=xx, xy=xy, bias=bias, groups=tuple(groups))

    @classmethod
    def scale_zeros(cls, hidden: int, *, device: torch.device) -> "Moments":
        """Return sums of nothing, for one number a channel."""
        return cls(xx=_zeros(device, hidden), xy=_zeros(device, hidden), bias=False)

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


def _zeros(device: torch.device, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=device)
