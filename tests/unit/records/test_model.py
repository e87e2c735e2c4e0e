"""What is known of a model without running it."""

from dataclasses import replace

import pytest

from tests.support.records import fixture_model


def test_the_share_of_weights_counts_layers_and_head_but_no_embedding() -> None:
    model = replace(fixture_model(4), hidden_size=10, vocab_size=20, layer_parameters=(100, 100, 300, 300))
    assert model.weights_share((0, 2)) == pytest.approx(400 / 1000)
    assert model.weights_share(()) == 0
    assert model.weights_share(range(4)) == pytest.approx(0.8)
