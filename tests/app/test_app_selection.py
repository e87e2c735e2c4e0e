"""What the browser sends is checked before it becomes a block; what a person reads is never markup."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from shortviz.records.formatting import count, duration, percent, size, with_error
from shortviz.records.plan import Block
from shortviz.service.queue import JobState
from shortviz.ui.pages.inspector import marked
from shortviz.ui.parts.notes import plain, progress_words
from shortviz.ui.session.shown import parse_cell, parse_row, parse_selection


def click(customdata: Any) -> dict[str, Any]:
    return {"selection": {"points": [{"customdata": customdata, "x": 1, "y": 1}]}}


def test_a_click_names_start_and_n() -> None:
    assert parse_selection(click([4, 3, "layers 4-6"]), 30) == Block(start=4, n=3)


def test_a_click_is_read_from_attributes_as_well() -> None:
    event = SimpleNamespace(selection=SimpleNamespace(points=[{"customdata": [0, 1]}]))
    assert parse_selection(event, 30) == Block(start=0, n=1)


@pytest.mark.parametrize(
    "event",
    [
        None,
        {},
        {"selection": {"points": []}},
        {"selection": {"points": "ab"}},
        click(None),
        click([4]),
        click({"0": 4, "1": 3}),
        click(["four", 3]),
        click([28, 3]),
        click([-1, 3]),
        click([4, 0]),
        click([None, 2]),
        click("43"),
    ],
)
def test_an_empty_or_foreign_event_chooses_nothing(event: Any) -> None:
    assert parse_selection(event, 30) is None


def test_a_cell_of_the_table_names_its_row_by_position_and_its_column_by_name() -> None:
    event = {"selection": {"cells": [[2, "7"]]}}
    assert parse_cell(event, 30, range(1, 31)) == Block(start=7, n=3)


@pytest.mark.parametrize("cells", [[], [[2]], [[99, "7"]], [["2", "7"]], [[2, "layers"]], [[28, "7"]]])
def test_a_cell_outside_the_triangle_chooses_nothing(cells: Any) -> None:
    assert parse_cell({"selection": {"cells": cells}}, 30, range(1, 31)) is None


def test_a_row_of_the_best_table_names_its_block() -> None:
    blocks = [Block(start=5, n=1), Block(start=4, n=2)]
    assert parse_row({"selection": {"rows": [1]}}, blocks) == blocks[1]
    assert parse_row({"selection": {"rows": [2]}}, blocks) is None
    assert parse_row({"selection": {"rows": []}}, blocks) is None


def test_text_from_outside_loses_all_meaning_as_markup() -> None:
    nasty = "![x](http://e/?q) <b>*bold*</b> :red[a] `c` $x$ #h"
    shown = plain(nasty)
    for character in "![]()<>*:`$#":
        assert shown.count(f"\\{character}") == nasty.count(character)


def test_numbers_read_with_their_units() -> None:
    assert with_error(0.14834, 0.00212) == "0.1483 ± 0.0021"
    assert with_error(69.12, 1.93) == "69.1 ± 1.9"
    assert with_error(2.0, float("nan")) == "2.00"
    assert with_error(float("inf"), 1.0) == "not finite"
    assert count(14_160_384) == "14.2 M"
    assert size(57_000_000) == "57.0 MB"
    assert size(6144) == "6.1 KB"
    assert duration(200) == "3 min 20 s"
    assert percent(0.61) == "61.0 %"


def test_what_differs_in_the_cut_text_is_marked_and_nothing_in_it_is_markup() -> None:
    uncut, cut = marked("Paris. It is *large*.", "Paris. It was *large* `once`.")
    assert uncut == plain("Paris. It is *large*.")
    assert cut == r"Paris\. It :orange-background[was] \*large\* :orange-background[\`once\`\.]"
    assert marked("It is large", "It is large, now") == (
        "It is large",
        f"{plain('It is large,')} :orange-background[now]",
    )
    assert marked("same words", "same words") == ("same words", "same words")
    assert marked("", "alone") == ("", "alone")


def test_progress_names_its_stage_counts_cells_and_says_about_how_long() -> None:
    job = JobState(id="1", kind="losses", title="map", state="running", stage="first look", done=55, total=464)
    assert progress_words(replace(job, unit="cells", eta_seconds=118.0)) == "first look: 55 of 464 cells, about 2 min"
    assert progress_words(replace(job, unit="cells")) == "first look: 55 of 464 cells"
    assert progress_words(replace(job, unit="cells", eta_seconds=12.0)).endswith("about 12 s")
    assert progress_words(JobState(id="1", kind="load", title="x", state="running")) == "starting"
