"""What the commands print, from formula-made records."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest

from shortviz.cli.output import PlainProgress, best_table, distances_text, evaluation_text, progress, run_text
from shortviz.export.card import _measured
from shortviz.progress import Progress
from shortviz.records.formatting import nth, percent
from shortviz.records.measured import Grid
from shortviz.records.table import Table, left, right
from tests.support.records import fixture_distances, fixture_model, fixture_run


def test_a_table_aligns_its_columns_and_leaves_no_trailing_blanks():
    text = Table(right("n", "layers") + left("note"), [["1", "10", ""], ["12", "3-14", "tied"]]).text()
    assert text == " n  layers  note\n 1      10\n12    3-14  tied"


def test_a_table_takes_no_word_for_markup_and_no_bar_for_a_border():
    table = Table(left("name") + right("n"), [["[red]x[/red] | y", "1"], [r"a\|b", "2"]])
    assert table.text().splitlines()[1] == "[red]x[/red] | y  1"
    assert table.markdown().splitlines() == [
        "| name | n |",
        "|---|---:|",
        r"| [red]x[/red] \| y | 1 |",
        r"| a\|b | 2 |",
    ]


def test_the_best_table_has_a_line_for_every_size_and_marks_the_sink():
    lines = best_table(fixture_distances(12), "angular_last", fixture_model(12)).splitlines()
    assert len(lines) == 1 + 11
    assert [line.split()[0] for line in lines[1:]] == [str(n) for n in range(1, 12)]
    assert "removes layer 4, which writes the attention sink" in lines[-1]


def test_a_block_that_cannot_be_exported_is_not_the_best():
    distances = fixture_distances(12)
    first = best_table(distances, "angular_last", fixture_model(12)).splitlines()[1].split()[1]
    other = fixture_model(12, illegal=((int(first), 1, "the config needs it"),))
    assert best_table(distances, "angular_last", other).splitlines()[1].split()[1] != first


def test_one_row_gives_no_error_and_no_ties():
    lines = best_table(fixture_distances(6, samples=1), "angular_last", fixture_model(6)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3", "4", "5"]
    assert "±" not in "".join(lines)
    assert "tied" not in "".join(lines)


def test_a_run_is_shown_with_its_sink_its_text_and_its_evaluations():
    text = run_text(fixture_run())
    assert "Layers that write the attention sink: 10." in text
    assert "built-in python-reference; 64 rows of at most 256 tokens; BOS auto: no BOS." in text
    assert "angular_last" in text
    assert "Evaluated with layers removed:" in text
    assert " nats), paired" in text


def test_one_window_says_that_it_has_no_error_and_never_nan():
    (evaluation, *_) = fixture_run().evaluations
    nan = float("nan")
    score = replace(evaluation.score, windows=1, nll_stderr=nan)
    assert evaluation.base is not None
    base = replace(evaluation.base, windows=1, nll_stderr=nan)
    errors = dict.fromkeys(("nll_increase_stderr", "kl_stderr", "same_top1_stderr"), nan)
    one = replace(evaluation, score=score, base=base, **errors)
    assert "±" in evaluation_text(evaluation)
    text = evaluation_text(one)
    assert "nan" not in text
    assert "±" not in text
    assert "in 1 window of 256 (no error from one)" in text
    card = _measured(one).markdown()
    assert "nan" not in card
    assert "±" not in card


def test_progress_without_a_terminal_is_lines_for_the_first_and_the_last_step():
    stream = io.StringIO()
    with progress(stream) as on_progress:
        for done in range(8, 65, 8):
            on_progress(Progress(stage="measure", done=done, total=64, unit="rows"))
        for _ in range(3):
            on_progress(Progress(stage="prove", done=1, total=1, unit="steps", detail="4 prompts"))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "measure: 8/64 rows"
    assert lines[1].startswith("measure: 64/64 rows, ")
    assert lines[1].endswith(" rows/s")
    assert lines[2:] == ["prove: 1/1 steps (4 prompts)"], "a stage that is done is said to be done once"


def test_progress_says_the_rate_and_the_time_that_is_left():
    plain = PlainProgress(io.StringIO())
    plain.state(Progress(stage="download", done=0, total=2e12, unit="bytes"))
    text = plain.state(Progress(stage="download", done=1e6, total=2e12, unit="bytes", detail="model.safetensors"))
    assert text.startswith("1.0 MB of 2.0 TB, ")
    assert text.endswith(" left (model.safetensors)")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("total", [64, 0])
def test_progress_on_a_terminal_is_a_bar_that_leaves_nothing_behind(total):
    stream = Terminal()
    with progress(stream) as on_progress:
        on_progress(Progress(stage="measure", done=8, total=total, unit="rows"))
        on_progress(Progress(stage="prove", done=1, total=1, unit="steps"))
    assert "measure" in stream.getvalue()


def test_a_criterion_that_had_too_few_rows_says_so_and_has_no_empty_table():
    found = fixture_distances(6)
    empty = Grid(mean=np.full((6, 6), np.nan), stderr=np.full((6, 6), np.nan), samples=0)
    text = distances_text(replace(found, criteria={"linear_replacement": empty}), fixture_model(6))
    assert "Not measured: too few rows of text" in text
    assert "n  layers" not in text


def test_a_share_of_all_or_none_has_no_error_for_zero_would_say_certainty() -> None:
    assert percent(0.45, 0.05) == "45.0 ± 5.0 %"
    assert percent(1.0, 0.0) == "100.0 %"
    assert percent(0.0, 0.0) == "0.0 %"
    assert percent(1.0, math.nan) == "100.0 %"
    assert [nth(index) for index in (0, 1, 2, 3, 10, 11, 12, 20, 110)] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "111th")
    ]
