"""Angular distance averaged over the tokens of a sequence, then over sequences.

After Gromov et al. 2024 (arXiv 2403.17887, eq. 7), which takes the last token only. Position 0 is left out: its huge
constant state, the attention sink, hardly turns and would hide what the other tokens do.
"""

from shortviz.criteria.base import Criterion, angle, angle_of_pairs

CRITERION = Criterion(
    name="angular_mean",
    label="angular, all tokens",
    units="half-turns",
    low=0.0,
    high=1.0,
    tokens="all",
    source="after Gromov et al. 2024, arXiv 2403.17887, eq. 7, averaged over tokens",
    explanation="How far the block turns the residual stream, on average over all tokens but the first.",
    score=angle,
    from_pairs=angle_of_pairs,
    order=2,
)
