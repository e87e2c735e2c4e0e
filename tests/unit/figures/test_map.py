"""The map as a figure: what is drawn, what a click brings back, what the tooltip says."""

import dataclasses
import json
import time
from typing import Any

import numpy as np
import pytest

from shortviz.errors import RunError
from shortviz.figures.map import MapView, distance_map
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
    assert layout["height"] == 420
    assert spec(fixture_distances(80))["layout"]["height"] == 960


def test_layers_count_from_zero_and_n_from_one() -> None:
    layout = spec(fixture_distances(30))["layout"]
    assert layout["xaxis"]["range"] == [-0.5, 29.5]
    assert layout["yaxis"]["range"] == [0.5, 30.5]
    assert layout["xaxis"]["tickvals"][0] == 0
    assert layout["yaxis"]["tickvals"][:3] == [1, 2, 4]
    assert layout["xaxis"]["title"]["text"] == "start layer (first layer removed)"
    assert layout["yaxis"]["title"]["text"] == "n (layers removed)"


def test_each_row_is_rescaled_to_its_own_best_and_worst() -> None:
    heat = spec(fixture_distances(10))["data"][0]
    for n in range(1, 10):
        row = [v for v in heat["z"][n - 1] if v is not None]
        assert len(row) == 10 - n + 1
        assert (min(row), max(row)) == (0.0, 1.0)
    assert (heat["zmin"], heat["zmax"]) == (0, 1)
    assert heat["colorbar"]["title"]["text"] == "angular, last token, rescaled per n: 0 = best"


def test_the_raw_scale_says_its_range_and_units() -> None:
    angles = spec(fixture_distances(10), scale="raw")["data"][0]
    assert np.nanmax(fixture_distances(10).criteria["angular_last"].mean) == pytest.approx(0.36, abs=0.05)
    assert (angles["zmin"], angles["zmax"]) == (0, 0.5)
    assert angles["colorbar"]["title"]["text"] == "angular, last token, half-turns, 0 to 0.5"
    lengths = spec(fixture_distances(10), "euclidean_last", scale="raw")["data"][0]
    largest = np.nanmax(fixture_distances(10).criteria["euclidean_last"].mean)
    assert largest <= lengths["zmax"] <= 2.5 * largest
    assert lengths["colorbar"]["title"]["text"].endswith(f"residual-stream units, 0 to {lengths['zmax']:g}")


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


def test_a_ring_marks_the_best_start_of_each_row_that_can_be_exported() -> None:
    distances = fixture_distances(30)
    grid = distances.criteria["angular_last"]
    ring = spec(distances)["data"][2]
    assert ring["x"] == [int(np.argmin(grid.row(n))) for n in ring["y"]]
    assert ring["y"] == list(range(1, 31))
    best = int(np.argmin(grid.row(5)))
    model = fixture_model(30, illegal=((best, 5, "layer_types"),))
    figure = json.loads(distance_map(distances, "angular_last", model, MapView()).to_json())
    assert figure["data"][2]["x"][4] != best


def test_blocks_that_cannot_be_exported_are_struck_through_and_say_why() -> None:
    model = fixture_model(30, illegal=ILLEGAL)
    figure = json.loads(distance_map(fixture_distances(30), "angular_last", model, MapView()).to_json())
    struck = figure["data"][3]
    assert set(zip(struck["x"], struck["y"], strict=True)) == {(3, 5), (4, 5), (0, 30)}
    assert struck["marker"]["symbol"] == "line-ne-open"
    warnings = {(row[0], row[1]): row[6] for row in figure["data"][-1]["customdata"]}
    assert warnings[(3, 5)] == "<br>/ cannot be exported: layer_types needs &lt;period&gt; 6"
    assert "removes every layer: nothing would be left to run" in warnings[(0, 30)]
    assert warnings[(20, 5)] == ""


def test_blocks_that_remove_a_sink_layer_carry_a_tilde_and_say_which() -> None:
    distances = fixture_distances(30)
    assert distances.norms.sink_layers == (10,)
    figure = spec(distances)
    marks = figure["data"][4]
    marked = set(zip(marks["x"], marks["y"], strict=True))
    assert marked == {(s, n) for n in range(1, 31) for s in range(31 - n) if s <= 10 < s + n}
    assert set(marks["text"]) == {"~"}
    warnings = {(row[0], row[1]): row[6] for row in figure["data"][-1]["customdata"]}
    assert warnings[(10, 1)] == "<br>~ removes layer 10, which writes the attention sink"
    key = figure["layout"]["annotations"][0]["text"]
    assert "~  removes a sink layer" in key
    assert "cannot be exported" in key


def test_the_tooltip_names_layers_distance_with_error_rank_and_savings() -> None:
    distances = fixture_distances(30)
    hits = spec(distances)["data"][-1]
    row = next(row for row in hits["customdata"] if row[:2] == [21, 8])
    mean, stderr = distances.criteria["angular_last"].at(Block(start=21, n=8))
    rank = distances.criteria["angular_last"].rank(Block(start=21, n=8))
    assert row[2] == "layers 21-28"
    assert row[3] == with_error(mean, stderr)
    assert row[4].startswith(f"rank {rank} of 23 in its row, ")
    assert row[5] == "28.3 M parameters (21.1 %)"
    assert "over 64 rows of text" in hits["hovertemplate"]
    assert "angular, last token" in hits["hovertemplate"]


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
    assert "shapes" not in spec(fixture_distances(8))["layout"]
    shapes = spec(fixture_distances(8), selected=Block(start=2, n=3))["layout"]["shapes"]
    assert {(s["x0"], s["x1"], s["y0"], s["y1"]) for s in shapes} == {(1.5, 2.5, 2.5, 3.5)}
    assert len({s["line"]["color"] for s in shapes}) == 2


@pytest.mark.parametrize("dark", [False, True])
def test_words_are_readable_and_the_page_shines_through(dark: bool) -> None:
    layout = spec(fixture_distances(8), dark=dark)["layout"]
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"
    assert layout["font"]["color"] == ("#fafafa" if dark else "#31333f")
    assert layout["xaxis"]["tickfont"]["color"] == layout["font"]["color"]


def test_yellow_is_the_redundant_end_of_both_palettes() -> None:
    assert spec(fixture_distances(4))["data"][0]["colorscale"][0][1] == "#fee838"
    assert spec(fixture_distances(4), palette="viridis")["data"][0]["colorscale"][0][1] == "#fde725"


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("layers", [2, 3, 30])
def test_every_criterion_draws_at_every_depth(criterion: str, layers: int) -> None:
    drawn = spec(fixture_distances(layers), criterion, scale="raw")
    assert len(drawn["data"]) == 6
    assert "NaN" not in json.dumps(drawn)


def test_a_criterion_that_was_not_measured_is_refused_with_those_that_were() -> None:
    with pytest.raises(RunError) as refused:
        distance_map(with_mean(np.eye(2)), "block_influence", fixture_model(2), MapView())
    assert str(refused.value) == "Criterion 'block_influence' was not measured in this run; choose from angular_last."


def test_a_criterion_of_someones_own_is_drawn_under_its_name() -> None:
    distances = fixture_distances(5)
    mine = dataclasses.replace(distances, criteria={"my_rule": distances.criteria["euclidean_last"]})
    bar = spec(mine, "my_rule", scale="raw")["data"][0]["colorbar"]
    assert bar["title"]["text"].startswith("my rule, 0 to ")


def test_a_model_of_126_layers_draws_fast_with_many_illegal_blocks() -> None:
    illegal = tuple((s, n, "layer_types") for n in range(1, 126, 2) for s in range(126 - n))
    distances, model = fixture_distances(126), fixture_model(126, illegal=illegal)
    began = time.process_time()
    distance_map(distances, "angular_last", model, MapView(selected=Block(start=3, n=4)))
    assert time.process_time() - began < 3  # a third of that on an idle machine
