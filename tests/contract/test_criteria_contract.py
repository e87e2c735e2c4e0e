"""What every criterion promises; a new file in shortviz/criteria is found here by itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shortviz import criteria
from shortviz.criteria.base import Pairs
from shortviz.errors import ShortvizError

NAMES = criteria.names()
SCORED = [name for name in NAMES if criteria.info(name).score]


def vectors(seed: int, count: int = 7, hidden: int = 24, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pairs_of(u: torch.Tensor, v: torch.Tensor) -> Pairs:
    u, v = u.double(), v.double()
    return Pairs(dot=(u * v).sum(-1), start_squared=(u * u).sum(-1), end_squared=(v * v).sum(-1))


def test_the_folder_scan_finds_the_criteria_of_the_design_in_order():
    assert NAMES[:5] == ("angular_last", "angular_mean", "block_influence", "euclidean_last", "relative_magnitude")


def test_an_unknown_criterion_is_refused_with_the_known_ones():
    with pytest.raises(ShortvizError, match=r"no criterion 'cosine'; choose from angular_last, angular_mean"):
        criteria.info("cosine")


@pytest.mark.parametrize("name", NAMES)
def test_the_card_of_a_criterion_is_filled_in(name):
    c = criteria.info(name)
    assert c.name == name
    assert all((c.label, c.units, c.source, c.explanation))
    assert c.tokens in ("last", "all")
    assert c.low < c.high


@pytest.mark.parametrize("name", SCORED)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_one_value_per_token_inside_the_bounds_and_zero_on_equal_input(name, seed):
    c = criteria.info(name)
    u, v = vectors(seed), vectors(seed + 1)
    values = c.score(u, v)
    assert values.shape == (7,)
    assert ((values >= c.low) & (values <= c.high)).all()
    assert (c.score(u, u.clone()) == 0).all()


@pytest.mark.parametrize("name", SCORED)
def test_bfloat16_input_gives_the_value_of_the_rounded_vectors_also_where_it_is_tiny(name):
    c = criteria.info(name)
    u = vectors(3, hidden=512, dtype=torch.bfloat16)
    v = u.clone()
    v[:, 0] += torch.tensor(0.05, dtype=torch.bfloat16)
    values = c.score(u, v)
    assert torch.isfinite(values).all()
    assert (values > 0).all()
    assert torch.equal(values, c.score(u.double(), v.double()))


@pytest.mark.parametrize("name", [n for n in NAMES if criteria.info(n).from_pairs])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([1e-6, 1e-4, 1e-2, 1.0]))
def test_the_fast_path_from_inner_products_equals_the_score(name, seed, size):
    c = criteria.info(name)
    u = vectors(seed).double()
    v = u + size * vectors(seed + 1).double()
    torch.testing.assert_close(c.from_pairs(pairs_of(u, v)), c.score(u, v), rtol=0, atol=2e-8)


@pytest.mark.parametrize("name", ["angular_last", "angular_mean"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3))
def test_angles_are_symmetric_and_blind_to_scale(name, seed, scale):
    score = criteria.info(name).score
    u, v = vectors(seed).double(), vectors(seed + 1).double()
    np.testing.assert_allclose(score(u, v), score(v, u), atol=1e-14)
    np.testing.assert_allclose(score(u, scale * v), score(u, v), atol=1e-14)


@pytest.mark.parametrize("name", ["angular_last", "angular_mean"])
def test_a_right_angle_is_one_half_and_opposite_is_one(name):
    score = criteria.info(name).score
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    np.testing.assert_allclose(score(east, north), 0.5, atol=1e-15)
    np.testing.assert_allclose(score(east, -3 * east), 1.0, atol=1e-15)


@pytest.mark.parametrize("distance", [3e-4, 1e-4, 1e-6])
def test_small_angles_keep_their_digits_where_float32_arccos_loses_them(distance):
    turn = torch.tensor(distance * np.pi, dtype=torch.float64)
    u, v = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.stack([turn.cos(), turn.sin()])[None]
    np.testing.assert_allclose(criteria.info("angular_last").score(u, v), distance, rtol=1e-9)
    np.testing.assert_allclose(criteria.info("angular_last").from_pairs(pairs_of(u, v)), distance, rtol=1e-3)
