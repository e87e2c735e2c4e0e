"""Running sums: means, errors, merging, packing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortviz.records.sums import Sums, pack, unpack


@given(st.integers(0, 1000), st.integers(2, 30), st.integers(1, 29))
def test_any_split_of_the_samples_gives_the_mean_and_error_of_numpy(seed, count, cut):
    samples = np.random.default_rng(seed).normal(size=(count, 3))
    parts = samples[: min(cut, count)], samples[min(cut, count) :]
    merged = Sums.zeros(3).add(parts[0]).merge(Sums.zeros(3).add(parts[1]))
    assert merged.count == count
    np.testing.assert_allclose(merged.mean, samples.mean(0), atol=1e-12)
    np.testing.assert_allclose(merged.stderr, samples.std(0, ddof=1) / np.sqrt(count), atol=1e-12)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_have_no_error_bar(count):
    sums = Sums.zeros(2).add(np.ones((count, 2)))
    assert np.isnan(sums.stderr).all()
    assert np.isnan(sums.mean).all() == (count == 0)


def test_equal_samples_have_error_zero_not_a_rounding_nan():
    sums = Sums.zeros(1).add(np.full((7, 1), 0.1))
    assert sums.stderr[0] < 1e-9


def test_packed_sums_come_back_bit_equal():
    sums = {"a": Sums.zeros(2).add(np.array([[0.1, 1 / 3]])), "norm.first": Sums.zeros(4)}
    back = unpack(pack(sums))
    assert back.keys() == sums.keys()
    for name, s in sums.items():
        np.testing.assert_array_equal(back[name].total, s.total)
        np.testing.assert_array_equal(back[name].squares, s.squares)
        assert back[name].count == s.count


def test_a_grid_puts_each_pair_at_its_row_and_start():
    values = np.arange(6.0)[None]  # pairs (0,1) (0,2) (0,3) (1,2) (1,3) (2,3)
    grid = Sums.zeros(6).add(values).grid(3)
    np.testing.assert_array_equal(grid.mean, [[0, 3, 5], [1, 4, np.nan], [2, np.nan, np.nan]])
