"""The real demo model against the slow float64 reference, and what is known of it."""

import numpy as np
import pytest

from shortviz.analysis.planning import best_start
from shortviz.measure.distances import measure_distances
from shortviz.records.text import TextSpec
from shortviz.text.sources import TextRows
from shortviz.text.tokens import tokenize
from tests.support import reference

pytestmark = pytest.mark.demo

TEXT = (
    "The lighthouse keeper wrote the weather into a book every evening, and nobody read it until the storm.",
    "def area(radius):\n    return 3.14159 * radius ** 2\n\nprint(area(2.0))",
    "Water boils at a lower temperature on a mountain, because the air above it presses less.",
)


@pytest.fixture(scope="module")
def measured(demo_handle):
    spec = TextSpec(kind="paste", value=" ".join(TEXT), max_length=24)
    tokens = tokenize(TextRows(spec=spec, rows=TEXT, source="three passages"), demo_handle.tokenizer)
    return tokens, measure_distances(demo_handle, tokens, batch_size=2)


@pytest.fixture(scope="module")
def sequences(demo_handle, measured):
    decoder = demo_handle.model.model
    return [reference.boundaries(decoder, decoder.layers, row) for row in measured[0].rows]


@pytest.mark.parametrize("name", ["angular_last", "angular_mean", "block_influence"])
def test_distances_equal_an_independent_float64_computation_to_1e_6(measured, sequences, name):
    mean, error = reference.distances(sequences, name)
    np.testing.assert_allclose(measured[1].criteria[name].mean, mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(measured[1].criteria[name].stderr, error, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["euclidean_last", "relative_magnitude"])
def test_norm_criteria_equal_it_to_a_millionth_of_their_size(measured, sequences, name):
    mean, _ = reference.distances(sequences, name)
    np.testing.assert_allclose(measured[1].criteria[name].mean, mean, rtol=2e-6, atol=1e-6)


def test_layer_11_writes_the_attention_sink(measured):
    norms = measured[1].norms
    assert norms.sink_layers == (11,)
    assert norms.first[11] < 300
    assert norms.first[12] > 20_000
    assert norms.rest.max() < 3_000


def test_the_best_block_of_8_by_angle_removes_the_sink_layer_as_the_notes_say(measured):
    assert best_start(measured[1].criteria["angular_mean"], 8) == 11
