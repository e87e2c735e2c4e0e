"""The map in words and tables."""

import dataclasses
import subprocess
import sys

import numpy as np

from shortviz.analysis.planning import best_blocks
from shortviz.figures.cells import best_table, map_alt, map_table
from shortviz.records.measured import BlockDistances, Grid
from tests.support.records import fixture_distances, fixture_model, fixture_norms, fixture_text


def by_hand(mean: list[list[float]], stderr: float) -> BlockDistances:
    values = np.array(mean)
    grid = Grid(mean=values, stderr=np.where(np.isnan(values), np.nan, stderr), samples=9)
    layers = len(mean)
    return BlockDistances(
        num_layers=layers, criteria={"angular_last": grid}, norms=fixture_norms(layers, sink=0), text=fixture_text(9)
    )


NAN = float("nan")
SMALL = [[0.50, 0.20, 0.21], [0.60, 0.30, NAN], [0.70, NAN, NAN]]


def test_the_words_say_the_finding_with_numbers_and_errors() -> None:
    said = map_alt(by_hand(SMALL, 0.002), "angular_last", fixture_model(3))
    assert said == (
        "By angular, last token over 9 rows of text, the blocks that change demo (3 layers) least are "
        "layer 1 for n 1 (0.2000 ± 0.0020). Layer 0 writes the attention sink."
    )


def test_the_words_name_several_sizes_of_a_deep_model() -> None:
    said = map_alt(fixture_distances(30), "block_influence", fixture_model(30))
    assert "for n 1 (" in said
    assert "for n 3 (" in said
    assert "for n 7 (" in said
    assert said.count("±") == 3


def test_nothing_measured_is_said_so() -> None:
    empty = by_hand([[NAN] * 3] * 3, NAN)
    assert map_alt(empty, "angular_last", fixture_model(3)) == "Map of angular, last token: nothing is measured yet."
    assert best_table(empty, "angular_last", fixture_model(3)).empty


def test_the_table_has_a_row_for_each_n_and_a_column_for_each_start() -> None:
    distances = fixture_distances(5)
    table = map_table(distances, "angular_mean")
    assert list(table.index) == [1, 2, 3, 4, 5]
    assert list(table.columns) == ["0", "1", "2", "3", "4"]
    assert table.loc[3, "2"] == distances.criteria["angular_mean"].mean[2, 2]
    assert np.isnan(table.loc[3, "3"])
    table.loc[1, "0"] = 9.0
    assert distances.criteria["angular_mean"].mean[0, 0] != 9.0


def test_the_best_blocks_are_those_of_planning_with_the_gap_to_the_second() -> None:
    distances = fixture_distances(30)
    table = best_table(distances, "angular_last", fixture_model(30))
    assert [(r.start, r.n) for r in table.itertuples()] == [
        (b.start, b.n) for b in best_blocks(distances, "angular_last")
    ]
    grid = distances.criteria["angular_last"]
    for row in table.itertuples():
        lowest = np.sort(grid.row(row.n))
        assert row.distance == lowest[0]
        assert row.gap == lowest[1] - lowest[0]


def test_a_tie_inside_the_error_is_named_and_a_clear_lead_is_not() -> None:
    model = fixture_model(3)
    wide = best_table(by_hand(SMALL, 0.01), "angular_last", model).set_index("n")
    assert wide.loc[1, "layers"] == "1"
    assert (wide.loc[1, "tied"], wide.loc[1, "ties"]) == (True, "2")
    assert (wide.loc[2, "tied"], wide.loc[2, "layers"]) == (False, "1-2")
    narrow = best_table(by_hand(SMALL, 0.001), "angular_last", model).set_index("n")
    assert (narrow.loc[1, "tied"], narrow.loc[1, "ties"]) == (False, "")


def test_a_block_that_cannot_be_exported_is_never_the_best() -> None:
    model = fixture_model(3, illegal=((1, 1, "layer_types"),))
    table = best_table(by_hand(SMALL, 0.001), "angular_last", model).set_index("n")
    assert table.loc[1, "start"] == 2


def test_a_row_of_one_exportable_block_has_no_gap() -> None:
    model = fixture_model(3, illegal=((0, 2, "layer_types"),))
    table = best_table(by_hand(SMALL, 0.001), "angular_last", model).set_index("n")
    assert np.isnan(table.loc[2, "gap"])
    assert not table.loc[2, "tied"]


def test_a_sink_layer_in_the_best_block_is_noted() -> None:
    distances = dataclasses.replace(by_hand(SMALL, 0.001), norms=fixture_norms(3, sink=1))
    table = best_table(distances, "angular_last", fixture_model(3)).set_index("n")
    assert table.loc[1, "note"] == "removes layer 1, which writes the attention sink"


def test_charts_and_jobs_import_neither_torch_nor_streamlit() -> None:
    names = "{'torch', 'streamlit', 'pandas'}"
    program = f"import sys, shortviz.figures.map, shortviz.service.queue; print(sorted({names} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    proof = subprocess.run(
        [sys.executable, "-c", "import streamlit; " + program], capture_output=True, text=True, check=True
    )
    assert "streamlit" in proof.stdout, "the check above could not fail"
