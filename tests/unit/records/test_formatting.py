"""Numbers as people read them."""

import math

import pytest

from shortviz.records.formatting import factor, times


@pytest.mark.parametrize(
    ("nats", "stderr", "words"),
    [
        (0.43, 0.02, "× 1.54 (+0.430 ± 0.020 nats)"),
        (-0.02, 0.005, "× 0.980 (-0.0200 ± 0.0050 nats)"),
        (0.5, math.nan, "× 1.65 (+0.500 nats)"),
        (5.0, None, "× 148 (+5.00 nats)"),
        (math.nan, math.nan, "-"),
        (1e4, None, "+10,000 nats"),
    ],
)
def test_a_loss_is_told_as_a_factor_of_perplexity_and_in_nats(nats: float, stderr: float | None, words: str) -> None:
    assert times(nats, stderr) == words


def test_a_factor_is_never_too_large_to_print() -> None:
    assert factor(75.0) == "× 3.73e+32"
    assert factor(1e6) == "not finite"
    assert factor(None) == "-"
