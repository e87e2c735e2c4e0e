"""Euclidean distance at the last token: how much the block adds to the residual stream, in the stream's own units."""

from typing import TYPE_CHECKING, Any

from shortviz.criteria.base import Criterion, Pairs

if TYPE_CHECKING:
    from torch import Tensor
else:  # a saved run is explored without torch
    Tensor = Any


def _distance(u: Tensor, v: Tensor) -> Tensor:
    return (v.double() - u.double()).norm(dim=-1)


def _distance_of_pairs(pairs: Pairs) -> Tensor:
    return pairs.difference


CRITERION = Criterion(
    name="euclidean_last",
    label="Euclidean, last token",
    units="residual-stream units",
    low=0.0,
    high=float("inf"),
    tokens="last",
    source="the plain norm of the difference",
    explanation="Length of what the block adds to the residual stream at the last token; grows with depth.",
    score=_distance,
    from_pairs=_distance_of_pairs,
    order=4,
)
