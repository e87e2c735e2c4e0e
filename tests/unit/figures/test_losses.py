"""Figures over measured losses, and the map of where prediction and measurement part."""

import json

import numpy as np
import pytest

from shortviz.analysis.agreement import agreement
from shortviz.analysis.curve import curve_from_map
from shortviz.figures import map as charts
from shortviz.figures.cells import as_map, map_alt
from shortviz.figures.losses import (
    agreement_alt,
    agreement_figure,
    curve_alt,
    curve_figure,
    difference_grid,
    regret_figure,
)
from shortviz.records.plan import Block
from tests.support.maps import LAYERS, distances_of, grid, losses_of, triangle
from tests.support.records import fixture_model


def test_the_measured_map_is_drawn_by_the_charts_of_a_distance_map():
    losses = losses_of(triangle())
    picture = as_map(losses)
    figure = charts.distance_map(picture, "nll_increase", fixture_model(LAYERS), charts.MapView(scale="value"))
    assert "nats per token, log scale" in figure.layout.annotations[0].text
    assert "measured NLL increase" in figure.data[-1].hovertemplate
    assert "By measured NLL increase over 4 windows" in map_alt(picture, "nll_increase", fixture_model(LAYERS))


def test_the_difference_is_the_gap_between_ranks_and_its_palette_is_centred():
    one, other = triangle(), triangle()
    one[0], other[0] = [1, 2, 3, 4, 5], [5, 4, 3, 2, 1]
    found = difference_grid(grid(one), grid(other))
    np.testing.assert_allclose(found.mean[0], [-1, -0.5, 0, 0.5, 1])
    assert np.isnan(found.mean[LAYERS - 1]).all()
    picture = as_map(losses_of(triangle()))
    mixed = type(picture)(num_layers=LAYERS, criteria={"angular_last": found}, norms=picture.norms, text=picture.text)
    figure = charts.distance_map(mixed, "angular_last", fixture_model(LAYERS), charts.MapView(scale="difference"))
    assert (figure.data[0].zmin, figure.data[0].zmax) == (-1, 1)
    assert not figure.data[2].x, "no best start is ringed where nothing is best"


def test_agreement_figures_hold_a_point_for_each_measured_block():
    distances, losses = distances_of(triangle()), losses_of(triangle(1))
    figure = agreement_figure(distances, losses, "angular_last", Block(start=1, n=2))
    assert len(figure.data[0].customdata) == LAYERS * (LAYERS + 1) // 2 - 1
    assert len(figure.data) == 2, "the chosen block is ringed"
    found = agreement(distances, losses)
    assert len(regret_figure(found).data) == len(found)
    assert "angular, last token" in agreement_alt(found)
    assert agreement_alt(()) == "Too few blocks are measured to compare criteria."


@pytest.mark.parametrize("perplexity", [False, True])
def test_the_curve_has_a_line_for_each_strategy_that_starts_uncut(perplexity):
    curve = curve_from_map(losses_of(triangle()), distances_of(triangle(1)))
    figure = curve_figure(curve, perplexity=perplexity, top=9.0)
    assert (figure.layout.legend.orientation, figure.layout.legend.yanchor) == ("h", "top")
    assert figure.layout.legend.y < 0, "the legend covers no line"
    assert {line.name for line in figure.data} == {line.label for line in curve.lines}
    start = np.exp(3.0) if perplexity else 3.0
    assert all(line.y[0] == pytest.approx(start) for line in figure.data)
    json.loads(figure.to_json())
    assert "best measured block: 0 layers, 0 layers" in curve_alt(curve)
    quarter = curve_from_map(losses_of(triangle() / 4), distances_of(triangle(1)))
    assert "best measured block: 1 layer, 3 layers" in curve_alt(quarter)
