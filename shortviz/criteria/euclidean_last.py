"""Euclidean distance at the last token: how much the block adds to the residual stream, in the stream's own units."""

from shortviz.criteria.base import Criterion, Pairs, Tensor


def _distance(u: Tensor, v: Tensor) -> Tensor:
    result: Tensor = (v.double() - u.double()).norm(dim=-1)
    return result


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
    undefined_at_zero=False,
    order=4,
)
