"""Which layers to remove."""

from dataclasses import replace

import numpy as np
import pytest

from shortviz.analysis.planning import best_blocks, best_start, parse_layers, simple_plan, tied_starts
from shortviz.errors import PlanError
from shortviz.records.measured import Grid
from shortviz.records.plan import Block, PrunePlan
from tests.support.records import fixture_run


def grid_of(rows: list[list[float]], error: float = 0.0) -> Grid:
    size = len(rows)
    mean = np.full((size, size), np.nan)
    for n, row in enumerate(rows):
        mean[n, : len(row)] = row
    return Grid(mean=mean, stderr=np.where(np.isnan(mean), np.nan, error), samples=4)


THREE = [[0.3, 0.1, 0.2], [0.5, 0.4], [0.9]]


def test_the_best_start_is_the_lowest_of_its_row_and_the_first_of_equals():
    assert [best_start(grid_of(THREE), n) for n in (1, 2, 3)] == [1, 1, 0]
    assert best_start(grid_of([[0.2, 0.2], [0.3]]), 1) == 0


def test_best_blocks_cover_every_size_but_the_whole_model():
    run = fixture_run(num_layers=8)
    blocks = best_blocks(run.distances, "angular_last")
    assert [b.n for b in blocks] == list(range(1, 8))
    grid = run.distances.criteria["angular_last"]
    assert all(grid.rank(b) == 1 for b in blocks)


def test_a_block_the_config_cannot_express_is_never_the_best():
    run = fixture_run(num_layers=8)
    best = best_blocks(run.distances, "angular_last")[1]
    model = replace(run.model, illegal=((best.start, best.n, "because"),))
    assert best_blocks(run.distances, "angular_last", model)[1] != best
    assert best_blocks(run.distances, "angular_last", model)[0].n == 1


def test_a_row_with_no_legal_block_has_no_best():
    run = fixture_run(num_layers=4)
    model = replace(run.model, illegal=tuple((s, 2, "because") for s in range(3)))
    assert [b.n for b in best_blocks(run.distances, "angular_last", model)] == [1, 3]


def test_ties_are_the_starts_inside_two_joint_errors():
    assert tied_starts(grid_of(THREE), 1) == (1,)
    assert tied_starts(grid_of(THREE, error=0.04), 1) == (1, 2)
    assert tied_starts(grid_of(THREE, error=np.nan), 1) == (1,)


def test_the_simple_strategy_keeps_the_final_layer():
    assert simple_plan(30, 8).removed == tuple(range(21, 29))
    assert simple_plan(4, 3).removed == (0, 1, 2)


@pytest.mark.parametrize("n", [0, 30, -1])
def test_the_simple_strategy_refuses_sizes_it_cannot_have(n):
    with pytest.raises(PlanError, match=rf"n is {n}; the simple strategy removes 1 to 29 of 30"):
        simple_plan(30, n)


@pytest.mark.parametrize(
    ("text", "layers"), [("3,7,8", (3, 7, 8)), ("3-5, 9", (3, 4, 5, 9)), ("8,3,3", (3, 8)), (" 2 - 2", (2,))]
)
def test_lists_of_layers_are_read(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a layer"),
        ("3,,4", "'' is not a layer"),
        ("a", "'a' is not a layer"),
        ("-3", "'-3' is not a layer"),
        ("5-3", "'5-3' runs backwards; write it as 3-5"),
        ("0-99999999999", "There is no layer 99999999999"),
    ],
)
def test_lists_that_are_not_are_refused_with_the_bad_part(text, message):
    with pytest.raises(PlanError, match=message):
        parse_layers(text)


def test_plans_are_sorted_split_into_blocks_and_bounded():
    plan = PrunePlan(num_layers=10, removed=(8, 3, 4, 3))
    assert plan.removed == (3, 4, 8)
    assert plan.kept == (0, 1, 2, 5, 6, 7, 9)
    assert plan.blocks == (Block(start=3, n=2), Block(start=8, n=1))
    with pytest.raises(PlanError, match=r"no layer 10: the model has layers 0-9"):
        PrunePlan(num_layers=10, removed=(10,))
    with pytest.raises(PlanError, match="removes all 2 layers"):
        PrunePlan(num_layers=2, removed=(0, 1))


@pytest.mark.parametrize(
    ("start", "n", "message"),
    [(0, 0, "n is 0"), (-1, 2, "start -1, n 2 does not fit"), (9, 2, r"start can be 0-8 for n 2")],
)
def test_blocks_outside_the_model_are_refused(start, n, message):
    with pytest.raises(PlanError, match=message):
        Block(start=start, n=n).check(10)
