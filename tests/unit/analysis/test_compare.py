"""Two texts side by side: the difference map, and where the best start moves."""

import json

import numpy as np
import pytest

from shortviz.analysis.compare import grid_difference, shift_words, start_shifts
from shortviz.errors import RunError
from shortviz.figures.map import difference_alt, difference_figure
from shortviz.records.measured import Grid
from shortviz.records.plan import Block
from tests.support.records import fixture_grid, fixture_model

LAYERS = 8


def with_row(grid: Grid, n: int, values: list[float]) -> Grid:
    mean = grid.mean.copy()
    mean[n - 1, : len(values)] = values
    return Grid(mean=mean, stderr=grid.stderr, samples=grid.samples)


def exact(grid: Grid) -> Grid:
    return Grid(mean=grid.mean, stderr=np.zeros_like(grid.stderr), samples=grid.samples)


def test_the_difference_is_the_second_minus_the_first_with_both_errors() -> None:
    one, other = fixture_grid(LAYERS), fixture_grid(LAYERS, seed=1)
    found = grid_difference(one, other, per_n=False)
    block = Block(start=2, n=3)
    assert found.at(block)[0] == pytest.approx(other.at(block)[0] - one.at(block)[0])
    assert found.at(block)[1] == pytest.approx(np.hypot(one.at(block)[1], other.at(block)[1]))
    assert np.isnan(found.mean[LAYERS - 1, 1])


def test_a_text_that_only_moves_the_model_more_makes_no_difference_per_n() -> None:
    one = fixture_grid(LAYERS)
    twice = Grid(mean=2 * one.mean, stderr=2 * one.stderr, samples=one.samples)
    found = grid_difference(one, twice)
    assert np.nanmax(np.abs(found.mean)) < 1e-12
    assert np.nanmax(grid_difference(one, twice, per_n=False).mean) > 0


def test_maps_of_different_depth_are_refused() -> None:
    with pytest.raises(RunError, match="of 8 and 6 layers; choose runs of one model"):
        grid_difference(fixture_grid(8), fixture_grid(6))


def test_a_best_start_that_moves_is_told_with_what_it_costs() -> None:
    one = exact(fixture_grid(LAYERS))
    other = with_row(one, 5, [0.1, 0.5, 0.5, 0.5])
    one = with_row(one, 5, [0.4, 0.5, 0.5, 0.1])
    (moved,) = [shift for shift in start_shifts(one, other) if shift.moved]
    assert (moved.n, moved.one, moved.other, moved.moved, moved.tied) == (5, 3, 0, -3, False)
    assert moved.cost == pytest.approx(0.3)
    assert shift_words(start_shifts(one, other)) == (
        "The best start moves for 1 of 7 sizes; furthest for n 5, from 3 to 0."
    )
    assert "the same on both texts for all 7 sizes" in shift_words(start_shifts(one, one))


def test_a_move_inside_the_errors_is_called_a_tie_and_illegal_blocks_are_never_best() -> None:
    one = exact(fixture_grid(LAYERS))
    loose = Grid(mean=one.mean, stderr=np.full_like(one.mean, 1.0), samples=4)
    other = with_row(one, 5, [0.0, 0.5, 0.5, 0.5])
    assert next(shift for shift in start_shifts(loose, other) if shift.n == 5).tied
    model = fixture_model(LAYERS, illegal=((0, 5, "layer_types"),))
    assert next(shift for shift in start_shifts(one, other, model) if shift.n == 5).other != 0


@pytest.mark.parametrize("per_n", [True, False])
def test_the_difference_map_is_centred_at_zero_and_clickable_as_the_map_is(per_n: bool) -> None:
    one, other = fixture_grid(LAYERS), fixture_grid(LAYERS, seed=1)
    names = ("prose", "<code>")
    figure = difference_figure(
        one,
        other,
        fixture_model(LAYERS),
        criterion="angular_last",
        names=names,
        per_n=per_n,
        selected=Block(start=1, n=2),
    )
    spec = json.loads(figure.to_json())
    colour, *_, hits = spec["data"]
    assert colour["zmin"] == -colour["zmax"] < 0
    assert np.nanmax(np.abs(grid_difference(one, other, per_n=per_n).mean)) == pytest.approx(colour["zmax"])
    assert len(hits["customdata"]) == LAYERS * (LAYERS + 1) // 2
    assert all(
        isinstance(row, list) and row[:2] == [x, y]
        for row, x, y in zip(hits["customdata"], hits["x"], hits["y"], strict=True)
    )
    assert spec["layout"]["hoverdistance"] == -1
    assert len(spec["layout"]["shapes"]) == 2, "the chosen block is outlined"
    assert "<code>" not in json.dumps(spec["layout"]["annotations"]) + hits["hovertemplate"]
    alt = difference_alt(one, other, fixture_model(LAYERS), criterion="angular_last", names=names)
    assert alt.startswith("<code> minus prose by angular, last token. The best start")
