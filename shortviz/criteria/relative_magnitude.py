"""Relative magnitude |x^(start+n) - x^(start)| / |x^(start+n)| (Samragh et al. 2023, arXiv 2312.09299).

An identity layer scores 0. (The seed library divides by the wrong norm.)
"""

from shortviz.criteria.base import Criterion, Pairs, Tensor


def _magnitude(u: Tensor, v: Tensor) -> Tensor:
    result: Tensor = (v.double() - u.double()).norm(dim=-1) / v.double().norm(dim=-1)
    return result


def _magnitude_of_pairs(pairs: Pairs) -> Tensor:
    return pairs.difference / pairs.end_squared.sqrt()


CRITERION = Criterion(
    name="relative_magnitude",
    label="relative magnitude",
    units="share of the output's norm",
    low=0.0,
    high=float("inf"),
    tokens="all",
    source="Samragh et al. 2023, arXiv 2312.09299",
    explanation="How large what the block adds is beside the stream that leaves it, averaged over tokens.",
    score=_magnitude,
    from_pairs=_magnitude_of_pairs,
    order=5,
)
