"""What a criterion is, the pairwise numbers that most of them are made of, and the angle, exact where it is tiny."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shortviz import criteria

if TYPE_CHECKING:
    from torch import Tensor as Tensor
else:  # a saved run is explored without torch
    Tensor = Any


Score = Callable[[Tensor, Tensor], Tensor]
"""(x^(start), x^(start+n)), shape (..., hidden) -> one value per token, shape (...)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Inner products of every pair of boundaries i < j, one row per token; float64, shape (tokens, pairs) each."""

    dot: Tensor
    """x^(i) . x^(j)."""
    start_squared: Tensor
    """|x^(i)|^2, i being the boundary where the block starts."""
    end_squared: Tensor
    """|x^(j)|^2."""

    @property
    def cosine(self) -> Tensor:
        """Cosine of the angle between the boundaries, clamped to [-1, 1]."""
        return (self.dot / (self.start_squared * self.end_squared).sqrt()).clamp(-1.0, 1.0)

    @property
    def difference(self) -> Tensor:
        """Euclidean norm of x^(j) - x^(i)."""
        return (self.start_squared + self.end_squared - 2.0 * self.dot).clamp(min=0.0).sqrt()


@dataclass(frozen=True, kw_only=True, slots=True)
class Criterion:
    """A rule that scores a block by what it does to the residual stream; low = redundant."""

    name: str
    label: str
    """For screens, e.g. `angular, last token`."""
    units: str
    low: float
    """Smallest possible value."""
    high: float
    """Largest possible value."""
    tokens: Literal["last", "all"]
    """`last`: the last token of a sequence. `all`: the mean over its tokens except position 0, the attention sink."""
    source: str
    """Paper and equation."""
    explanation: str
    """One line for people."""
    score: Callable[[Tensor, Tensor], Tensor] | None = None
    """(x^(start), x^(start+n)), shape (..., hidden), broadcast against each other -> one value per token, shape (...).

    The reference, and the only thing that a criterion of your own needs.
    """
    from_pairs: Callable[[Pairs], Tensor] | None = None
    """The same values from inner products, for all blocks at once; shape (tokens, pairs)."""
    from_sample: Callable[[Tensor, Tensor], Tensor | None] | None = None
    """For a criterion that fits something: (states (tokens, L+1, hidden), row of each token) of a fixed sample of
    tokens, at the end of the pass -> (rows scored, pairs), or None where the sample is too small."""
    undefined_at_zero: bool = True
    """Whether a zero vector has no such value; it is then reported, not invented."""
    order: int = 99
    """Place in lists."""


MEASURED = {"nll_increase": "measured NLL increase", "kl": "measured KL(uncut || cut)"}
"""Measured quantities that are drawn like a criterion, with their words; in nats per token."""


def label(name: str) -> str:
    """Return the words for a criterion or a measured quantity."""
    return MEASURED.get(name) or criteria.label(name)


def units(name: str) -> str:
    """Return the unit of a criterion or a measured quantity, or nothing where it is not known."""
    if name in MEASURED:
        return "nats per token"
    return criteria.info(name).units if name in criteria.names() else ""


def angle(u: Tensor, v: Tensor) -> Tensor:
    """Return the angle in half-turns, [0, 1], as 2 atan2(|a - b|, |a + b|) / pi on unit vectors in float64.

    arccos of a float32 cosine is 10 % off at an angle of 3e-4, just where a block is redundant.
    """
    a, b = u.double(), v.double()
    a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    result: Tensor = 2.0 / math.pi * (a - b).norm(dim=-1).atan2((a + b).norm(dim=-1))
    return result


def angle_of_pairs(pairs: Pairs) -> Tensor:
    """Return the same angles from float64 inner products; they resolve angles down to about 1e-8."""
    return pairs.cosine.arccos_().mul_(1.0 / math.pi)
