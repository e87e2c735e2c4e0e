"""Angular distance at the last token (Gromov et al. 2024, arXiv 2403.17887, eq. 7)."""

from shortviz.criteria.base import Criterion, angle, angle_of_pairs

CRITERION = Criterion(
    name="angular_last",
    label="angular, last token",
    units="half-turns",
    low=0.0,
    high=1.0,
    tokens="last",
    source="Gromov et al. 2024, arXiv 2403.17887, eq. 7",
    explanation="How far the block turns the residual stream at the last token, the one that has seen the whole text.",
    score=angle,
    from_pairs=angle_of_pairs,
    order=1,
)
