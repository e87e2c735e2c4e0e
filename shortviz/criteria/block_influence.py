"""Block influence, 1 - cosine (ShortGPT: Men et al. 2024, arXiv 2403.03853, eq. 1); the paper uses it with n = 1."""

from shortviz.criteria.base import Criterion, Pairs, Tensor


def _influence(u: Tensor, v: Tensor) -> Tensor:
    a, b = u.double(), v.double()
    a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    # |a - b|^2 / 2 is 1 - a.b without the cancellation near 0.
    result: Tensor = (a - b).square().sum(-1) / 2.0
    return result


def _influence_of_pairs(pairs: Pairs) -> Tensor:
    return 1.0 - pairs.cosine


CRITERION = Criterion(
    name="block_influence",
    label="block influence",
    units="1 - cosine",
    low=0.0,
    high=2.0,
    tokens="all",
    source="Men et al. 2024 (ShortGPT), arXiv 2403.03853, eq. 1, for any n",
    explanation="1 minus the cosine between what enters and what leaves the block, averaged over tokens.",
    score=_influence,
    from_pairs=_influence_of_pairs,
    order=3,
)
