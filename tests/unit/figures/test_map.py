"""The map as a figure: what is drawn, what a click brings back, what the tooltip says."""

import dataclasses
import json
import time
from typing import Any

import numpy as np
import pytest
from plotly.colors import hex_to_rgb

from shortviz.errors import RunError
from shortviz.figures.cells import CLIPPED, rank_shares
from shortviz.figures.map import MapView, distance_map
from shortviz.figures.theme import DIFFERENCE, NEEDED
from shortviz.records.formatting import with_error
from shortviz.records.measured import BlockDistances, Grid
from shortviz.records.plan import Block
from tests.support.records import CRITERIA, fixture_distances, fixture_grid, fixture_model, fixture_norms, fixture_text

ILLEGAL = ((3, 5, "layer_types needs <period> 6"), (4, 5, "layer_types needs <period> 6"))


def spec(distances: BlockDistances, criterion: str = "angular_last", **view: Any) -> dict[str, Any]:
    figure = distance_map(distances, criterion, fixture_model(distances.num_layers), MapView(**view))
    return json.loads(figure.to_json())


def with_mean(mean: np.ndarray, *, samples: int = 4) -> BlockDistances:
    grid = Grid(mean=mean, stderr=np.full_like(mean, np.nan), samples=samples)
    layers = mean.shape[0]
    return BlockDistances(
        num_layers=layers, criteria={"angular_last": grid}, norms=fixture_norms(layers, sink=0), text=fixture_text()
    )


def test_every_block_has_one_hit_target_that_brings_back_start_and_n_as_a_list() -> None:
    hits = spec(fixture_distances(30))["data"][-1]
    assert len(hits["customdata"]) == 30 * 31 // 2
    assert all(isinstance(row, list) for row in hits["customdata"])
    blocks = {(row[0], row[1]) for row in hits["customdata"]}
    assert blocks == {(start, n) for n in range(1, 31) for start in range(31 - n)}
    assert hits["x"] == [row[0] for row in hits["customdata"]]
    assert hits["y"] == [row[1] for row in hits["customdata"]]


def test_only_the_hit_targets_answer_the_mouse() -> None:
    *marks, hits = spec(fixture_distances(12))["data"]
    assert all(trace["hoverinfo"] == "skip" for trace in marks)
    assert [hits[part]["marker"]["opacity"] for part in ("selected", "unselected")] == [0, 0]
    assert hits["marker"]["opacity"] == 0


def test_the_layout_is_the_one_verified_for_clicks() -> None:
    layout = spec(fixture_distances(30))["layout"]
    assert (layout["hovermode"], layout["hoverdistance"]) == ("closest", -1)
    assert layout["xaxis"]["fixedrange"]
    assert layout["yaxis"]["fixedrange"]
    assert "dragmode" not in layout
    assert layout["height"] == spec(fixture_distances(80))["layout"]["height"], "the page gives the height"


def test_layers_count_from_zero_and_n_from_one() -> None:
    layout = spec(fixture_distances(30))["layout"]
    assert layout["xaxis"]["range"] == [-0.5, 29.5]
    assert layout["yaxis"]["range"] == [30.5, 0.5], "small n at the top"
    assert layout["xaxis"]["tickvals"][0] == 0
    assert layout["yaxis"]["tickvals"][:3] == [1, 2, 4]
    assert layout["yaxis"]["tickvals"][-1] == 28, "all 30 layers are never removed"
    assert "start layer" in words(layout)
    assert layout["xaxis"]["side"] == "top"
    assert layout["yaxis"]["title"]["text"] == "n (layers removed)"


def words(layout: dict[str, Any]) -> list[str]:
    return [annotation["text"] for annotation in layout["annotations"]]


def test_the_colour_is_the_rank_in_the_row_and_uses_all_of_the_ramp() -> None:
    drawn = spec(fixture_distances(10))
    heat = drawn["data"][0]
    for n in range(1, 10):
        row = [v for v in heat["z"][n - 1] if v is not None]
        assert sorted(row) == pytest.approx(np.linspace(0, 1, 10 - n + 1), abs=1e-5)
    assert (heat["zmin"], heat["zmax"]) == (0, 1)
    said = words(drawn["layout"])
    assert said[0] == "<b>angular, last token, rank in each row</b>"
    assert said[1:3] == ["first to go", "last to go"]


def test_equal_blocks_share_a_colour() -> None:
    shares = rank_shares(
        with_mean(np.array([[0.3, 0.1, 0.1], [0.1, 0.3, np.nan], [0.4, np.nan, np.nan]])).criteria["angular_last"]
    )
    assert shares[0].tolist() == [1.0, 0.25, 0.25]
    assert np.isnan(shares[2, 0])


def test_the_scale_of_values_says_its_range_its_units_and_what_lies_above() -> None:
    drawn = spec(fixture_distances(10), scale="value")
    angles, mean = drawn["data"][0], fixture_distances(10).criteria["angular_last"].mean
    assert (angles["zmin"], angles["zmax"]) == (0, 0.5)
    assert np.nanquantile(mean, CLIPPED) <= 0.5
    assert words(drawn["layout"])[0] == "<b>angular, last token, 0 to 0.5 half-turns</b>"
    lengths = spec(fixture_distances(10), "euclidean_last", scale="value")
    top = lengths["data"][0]["zmax"]
    above = int(np.sum(fixture_distances(10).criteria["euclidean_last"].mean > top))
    told = words(lengths["layout"])[0]
    assert f"0 to {top:g} residual-stream units" in told
    assert (f"{above} block" in told) == (above > 0)


def test_one_enormous_loss_does_not_make_all_others_look_alike() -> None:
    mean = np.where(np.isnan(fixture_grid(30).mean), np.nan, np.linspace(0.1, 9, 30)[:, None])
    mean[20, 3] = 75.0
    losses = dataclasses.replace(
        with_mean(mean), criteria={"nll_increase": Grid(mean=mean, stderr=np.full_like(mean, np.nan), samples=4)}
    )
    figure = json.loads(distance_map(losses, "nll_increase", fixture_model(30), MapView(scale="value")).to_json())
    heat = figure["data"][0]
    assert 10 ** heat["zmax"] == pytest.approx(10)
    assert words(figure["layout"])[0] == (
        "<b>measured NLL increase, 0.1 to 10 nats per token, log scale; 1 block above</b>"
    )
    shades = [(heat["z"][n - 1][0] - heat["zmin"]) / (heat["zmax"] - heat["zmin"]) for n in (1, 5, 15, 29)]
    assert shades == sorted(shades)
    assert min(np.diff(shades)) > 0.1


def test_rows_that_say_nothing_are_neutral_and_never_divided_by_zero() -> None:
    mean = np.array([[0.2, 0.2, 0.2], [0.1, 0.3, np.nan], [0.4, np.nan, np.nan]])
    heat, neutral, *_, hits = spec(with_mean(mean))["data"]
    assert heat["z"][0] == [None, None, None]
    assert neutral["z"][0] == [0, 0, 0]
    assert heat["z"][2][0] is None
    assert neutral["z"][2][0] == 0
    assert neutral["z"][1] == [None, None, None]
    places = {(row[0], row[1]): row[4] for row in hits["customdata"]}
    assert places[(0, 1)] == "nothing to tell the 3 blocks of this size apart"
    assert places[(0, 3)] == "the only block of its size"


def test_nothing_and_part_of_a_map_keep_the_same_traces_and_axes() -> None:
    whole = spec(fixture_distances(6))
    none = spec(with_mean(np.full((6, 6), np.nan)))
    half = fixture_grid(6).mean.copy()
    half[:, ::2] = np.nan
    part = spec(with_mean(half))
    for other in (none, part):
        assert [t["type"] for t in other["data"]] == [t["type"] for t in whole["data"]]
        assert other["layout"]["xaxis"] == whole["layout"]["xaxis"]
        assert other["layout"]["yaxis"] == whole["layout"]["yaxis"]
        assert other["layout"]["margin"] == whole["layout"]["margin"]
        assert other["layout"]["uirevision"] == whole["layout"]["uirevision"]
    assert none["data"][-1]["customdata"][0][3] == "not measured yet"
    assert none["data"][2].get("x", []) == []


def test_a_ring_marks_the_best_start_of_the_sizes_that_people_cut() -> None:
    distances = fixture_distances(30)
    grid = distances.criteria["angular_last"]
    ring = spec(distances)["data"][2]
    assert ring["x"] == [int(np.argmin(grid.row(n))) for n in ring["y"]]
    assert ring["y"] == list(range(1, 11))
    best = int(np.argmin(grid.row(5)))
    model = fixture_model(30, illegal=((best, 5, "layer_types"),))
    figure = json.loads(distance_map(distances, "angular_last", model, MapView()).to_json())
    assert figure["data"][2]["x"][4] != best


def test_blocks_that_cannot_be_exported_are_struck_through_and_say_why() -> None:
    model = fixture_model(30, illegal=ILLEGAL)
    figure = json.loads(distance_map(fixture_distances(30), "angular_last", model, MapView()).to_json())
    struck = figure["data"][3]
    assert set(zip(struck["x"], struck["y"], strict=True)) == {(3, 5), (4, 5)}
    assert struck["marker"]["symbol"] == "line-ne-open"
    warnings = {(row[0], row[1]): row[5] for row in figure["data"][-1]["customdata"]}
    assert warnings[(3, 5)] == "<br>cannot be exported: layer_types needs &lt;period&gt; 6"
    assert "removes every layer: nothing would be left to run" in warnings[(0, 30)]
    assert warnings[(20, 5)] == ""


def test_one_line_goes_round_the_blocks_that_remove_a_sink_layer_with_words_at_its_foot() -> None:
    distances = fixture_distances(30)
    assert distances.norms.sink_layers == (10,)
    figure = spec(distances)
    shapes = figure["layout"]["shapes"]
    right = [shape for shape in shapes if shape["type"] == "line"]
    assert {(shape["x0"], shape["y0"], shape["y1"]) for shape in right} == {(10.5, 0.5, 20.5)}
    (left,) = {shape["path"] for shape in shapes if shape["type"] == "path"}
    steps = [tuple(map(float, part[1:].split(","))) for part in left.split()]
    for n in range(1, 12):  # the first start whose block of n still holds layer 10
        assert (10 - n + 0.5, n - 0.5) in steps
        assert (10 - n + 0.5, n + 0.5) in steps
    said = words(figure["layout"])
    assert any("removes<br>layer 10, the attention sink" in each for each in said)
    assert not any("cannot be exported" in each for each in said), "nothing here cannot be"
    warnings = {(row[0], row[1]): row[5] for row in figure["data"][-1]["customdata"]}
    assert warnings[(10, 1)] == "<br>removes layer 10, which writes the attention sink"
    assert warnings[(11, 1)] == ""


def test_the_tooltip_names_layers_distance_with_error_and_rank_and_no_more() -> None:
    distances = fixture_distances(30)
    hits = spec(distances)["data"][-1]
    row = next(row for row in hits["customdata"] if row[:2] == [21, 8])
    mean, stderr = distances.criteria["angular_last"].at(Block(start=21, n=8))
    rank = distances.criteria["angular_last"].rank(Block(start=21, n=8))
    assert row[2:] == ["layers 21-28", with_error(mean, stderr), f"rank {rank} of 23", ""]
    assert hits["hovertemplate"].startswith("<b>%{customdata[2]}</b><br>angular, last token")


def test_blocks_that_measure_the_same_share_a_rank() -> None:
    distances = with_mean(np.array([[0.3, 0.1, 0.1], [0.1, 0.3, np.nan], [0.4, np.nan, np.nan]]))
    places = {(row[0], row[1]): row[4] for row in spec(distances)["data"][-1]["customdata"]}
    for start in range(3):
        rank = distances.criteria["angular_last"].rank(Block(start=start, n=1))
        assert places[(start, 1)].startswith(f"rank {rank} of 3")


@pytest.mark.parametrize(
    ("value", "stderr", "words"),
    [
        (0.1484, 0.0021, "0.1484 ± 0.0021"),
        (0.123, 0.02, "0.123 ± 0.020"),
        (0.5, 0.0999, "0.50 ± 0.10"),
        (2e12, 3e10, "2e+12 ± 3e+10"),
        (150.3, 0.02, "150.300 ± 0.020"),
        (0.0, 0.0, "0.00"),
        (0.25, float("nan"), "0.250"),
        (float("nan"), float("nan"), "-"),
    ],
)
def test_numbers_show_two_digits_of_their_error_and_three_of_their_own_without(
    value: float, stderr: float, words: str
) -> None:
    assert with_error(value, stderr) == words


def test_an_increase_keeps_its_sign() -> None:
    assert with_error(0.4881, 0.0331, sign=True) == "+0.488 ± 0.033"
    assert with_error(-0.00004, 0.02, sign=True) == "+0.000 ± 0.020"


def test_one_row_of_text_has_no_error_and_none_is_shown() -> None:
    hits = spec(fixture_distances(8, samples=1))["data"][-1]
    assert all("±" not in row[3] and float(row[3]) > 0 for row in hits["customdata"])


def test_the_chosen_block_is_outlined_in_two_tones() -> None:
    plain = spec(fixture_distances(8))["layout"]["shapes"]
    assert not [shape for shape in plain if shape["type"] == "rect"]
    shapes = spec(fixture_distances(8), selected=Block(start=2, n=3))["layout"]["shapes"][-2:]
    assert {(s["x0"], s["x1"], s["y0"], s["y1"]) for s in shapes} == {(1.5, 2.5, 2.5, 3.5)}
    assert len({s["line"]["color"] for s in shapes}) == 2


@pytest.mark.parametrize("dark", [False, True])
def test_words_are_readable_and_the_page_shines_through(dark: bool) -> None:
    layout = spec(fixture_distances(8), dark=dark)["layout"]
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"
    assert layout["font"]["color"] == ("#fafafa" if dark else "#31333f")
    assert layout["xaxis"]["tickfont"]["color"] == layout["font"]["color"]


def test_one_ramp_is_for_can_go_and_needed_and_another_for_differences() -> None:
    needed, difference = (spec(fixture_distances(4), scale=scale)["data"][0] for scale in ("rank", "difference"))
    assert [colour for _, colour in needed["colorscale"]] == NEEDED
    assert [colour for _, colour in difference["colorscale"]] == DIFFERENCE[::-1]
    light = [sum(part * weight for part, weight in zip(hex_to_rgb(c), (0.2, 0.7, 0.1), strict=True)) for c in NEEDED]
    assert light == sorted(light, reverse=True), "it gets darker in every step, for every kind of colour vision"


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("layers", [2, 3, 30])
def test_every_criterion_draws_at_every_depth(criterion: str, layers: int) -> None:
    drawn = spec(fixture_distances(layers), criterion, scale="value")
    assert len(drawn["data"]) == 5
    assert "NaN" not in json.dumps(drawn)


def test_a_criterion_that_was_not_measured_is_refused_with_those_that_were() -> None:
    with pytest.raises(RunError) as refused:
        distance_map(with_mean(np.eye(2)), "block_influence", fixture_model(2), MapView())
    assert str(refused.value) == "Criterion 'block_influence' was not measured in this run; choose from angular_last."


def test_a_criterion_of_someones_own_is_drawn_under_its_name() -> None:
    distances = fixture_distances(5)
    mine = dataclasses.replace(distances, criteria={"my_rule": distances.criteria["euclidean_last"]})
    assert words(spec(mine, "my_rule", scale="value")["layout"])[0].startswith("<b>my rule, 0 to ")


def test_a_model_of_126_layers_draws_fast_with_many_illegal_blocks() -> None:
    illegal = tuple((s, n, "layer_types") for n in range(1, 126, 2) for s in range(126 - n))
    distances, model = fixture_distances(126), fixture_model(126, illegal=illegal)
    began = time.process_time()
    distance_map(distances, "angular_last", model, MapView(selected=Block(start=3, n=4)))
    assert time.process_time() - began < 3  # a third of that on an idle machine
