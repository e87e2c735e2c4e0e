"""How criteria and measured losses are compared, and the removal curve that is read off the measured map."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortviz.analysis.agreement import agreement, agreement_table, spearman
from shortviz.analysis.curve import curve_from_map
from shortviz.records.plan import Block
from tests.support.maps import LAYERS, distances_of, losses_of, triangle
from tests.support.records import fixture_distances, fixture_model


@given(st.integers(0, 1000), st.integers(3, 20))
def test_spearman_is_1_for_any_increasing_map_and_minus_1_for_a_decreasing_one(seed, count):
    values = np.random.default_rng(seed).normal(size=count)
    assert spearman(values, np.exp(values)) == pytest.approx(1)
    assert spearman(values, -(values**3)) == pytest.approx(-1)


def test_spearman_gives_ties_their_mean_rank_and_says_nan_where_there_is_nothing_to_rank():
    # By hand: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(4.5 / np.sqrt(22.5))
    assert np.isnan(spearman(np.array([1.0, 2]), np.array([1.0, 2])))
    assert np.isnan(spearman(np.ones(4), np.arange(4.0)))
    assert spearman(np.array([1.0, np.nan, 2, 3]), np.array([1.0, 9, 2, 3])) == pytest.approx(1)


def test_a_criterion_equal_to_the_loss_agrees_fully_and_has_no_regret():
    truth = triangle()
    (found,) = agreement(distances_of(truth), losses_of(truth))
    assert found.criterion == "angular_last"
    assert found.spearman == pytest.approx(1)
    assert found.spearman_within == pytest.approx(1)
    assert [r.n for r in found.regrets] == [1, 2, 3, 4]
    assert all(r.picked == r.best and r.nats == 0 and r.stderr == 0 for r in found.regrets)


def test_regret_is_the_loss_of_the_pick_minus_the_best_with_both_errors():
    predicted, truth = triangle(), triangle(1)
    predicted[1, 2], truth[1, 2], truth[1, 0] = 0.0, 2.75, 2.0
    truth[1, [1, 3]] = 2.9
    (found,) = agreement(distances_of(predicted), losses_of(truth))
    regret = found.regrets[1]
    assert (regret.n, regret.picked, regret.best) == (2, 2, 0)
    assert regret.nats == pytest.approx(0.75)
    assert regret.stderr == pytest.approx(np.hypot(0.1, 0.1))
    table = agreement_table((found,))
    assert table["picks the best start"][0].endswith("of 4")


def test_rows_with_unmeasured_blocks_are_judged_by_what_is_measured():
    truth = triangle()
    truth[0, :4] = np.nan
    (found,) = agreement(distances_of(triangle()), losses_of(truth))
    assert np.isnan(found.spearman_rows[0])
    assert np.isfinite(found.spearman_rows[1])


def test_the_curve_starts_at_the_uncut_loss_and_takes_its_points_from_the_map():
    truth = triangle()
    curve = curve_from_map(losses_of(truth), distances_of(triangle(1)))
    lines = {line.strategy: line for line in curve.lines}
    assert set(lines) == {"best measured", "angular_last", "simple", "random"}
    for line in curve.lines:
        assert [p.n for p in line.points] == [0, 1, 2, 3, 4]
        assert line.points[0].nll == 3.0
    for n in range(1, LAYERS):
        row = truth[n - 1, : LAYERS - n + 1]
        assert lines["best measured"].points[n].nll == pytest.approx(3.0 + row.min())
        assert lines["random"].points[n].nll == pytest.approx(3.0 + row.mean())
        assert lines["simple"].points[n].removed == tuple(range(LAYERS - n - 1, LAYERS - 1))
        assert lines["angular_last"].points[n].nll >= lines["best measured"].points[n].nll
    assert lines["best measured"].points[2].perplexity == pytest.approx(np.exp(3.0 + truth[1, :4].min()))


def test_blocks_that_cannot_be_exported_are_not_on_the_curve():
    truth = triangle()
    best = int(np.nanargmin(truth[1, :4]))
    model = fixture_model(LAYERS, illegal=((best, 2, "because"),))
    curve = curve_from_map(losses_of(truth), None, model)
    assert Block(start=best, n=2).layers != curve.lines[0].points[2].removed


def test_distances_of_a_real_shape_work_too():
    distances = fixture_distances(LAYERS)
    found = agreement(distances, losses_of(triangle()))
    assert len(found) == len(distances.criteria)
