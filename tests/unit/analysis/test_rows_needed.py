"""How many rows of text a choice needs, from the score of every row."""

import json
from dataclasses import replace

import numpy as np
import pytest

from shortviz.analysis.rows_needed import count_rows_needed, row_counts, rows_needed_words
from shortviz.measure import gram
from shortviz.measure.distances import measure_distances
from shortviz.measure.gram import RowScores
from shortviz.progress import Watch
from shortviz.records.formatting import layers_text
from shortviz.records.json import plain
from shortviz.runs.run import parse_run
from tests.support.families import NUM_LAYERS, tiny_handle
from tests.support.records import fixture_run
from tests.support.tokens import token_set

LAYERS = 5
PAIRS = LAYERS * (LAYERS + 1) // 2
START, END = np.triu_indices(LAYERS + 1, 1)


def scores(rows: int, noise: float) -> np.ndarray:
    """Row n has its best start at 1 by a margin of 1 (n = 4 at 1 too); noise of that size on top."""
    base = np.where(START == 1, 0.0, 1.0)
    return base + noise * np.random.default_rng(3).standard_normal((rows, PAIRS))


def test_a_choice_that_every_row_makes_is_settled_after_one_row() -> None:
    found = count_rows_needed(scores(16, 0.0), LAYERS)
    assert found is not None
    assert found.needed == (1, 1, 1, 1)
    assert found.agree.shape == (len(found.counts), LAYERS - 1)
    assert (found.agree == 1).all()
    assert rows_needed_words(found, range(1, LAYERS)) == (
        "The best start no longer changes after 1 rows for n 1-4 (in 19 of 20 random orders of the 16 rows)."
    )


def test_the_noisier_the_rows_the_more_of_them_a_choice_needs() -> None:
    some, many = (count_rows_needed(scores(64, noise), LAYERS) for noise in (1.0, 2.5))
    assert some is not None
    assert many is not None
    assert 1 < sum(some.needed) < sum(many.needed)
    assert (np.diff(some.agree.mean(1)) >= -0.1).all(), "more rows agree more with all of them"


def test_pure_noise_is_never_called_settled() -> None:
    found = count_rows_needed(np.random.default_rng(0).standard_normal((32, PAIRS)), LAYERS)
    assert found is not None
    assert not any(found.enough(n) for n in (1, 2, 3))
    assert found.words(1) == "> 16"
    assert rows_needed_words(found, range(1, LAYERS)).endswith(" rows); not settled: n 1-3.")
    assert rows_needed_words(found, [1]) == "32 rows are too few to settle the best start of any size."


def test_a_block_that_cannot_be_exported_is_never_the_choice() -> None:
    noisy = scores(16, 0.0)
    noisy[::2, (START == 0) & (END == 2)] = -5.0  # every second row would choose (0, 2), which is illegal
    assert count_rows_needed(noisy, LAYERS, [(0, 2)]).needed[1] == 1
    assert count_rows_needed(noisy, LAYERS).needed[1] > 1


def test_three_rows_say_nothing_and_counts_grow_by_halves_and_doubles() -> None:
    assert count_rows_needed(scores(3, 1.0), LAYERS) is None
    assert row_counts(20) == (1, 2, 3, 4, 6, 8, 12, 16, 20)
    assert layers_text([1, 2, 3, 6, 8, 9]) == "1-3, 6, 8-9"


def test_a_measurement_tells_it_and_a_killed_one_tells_the_same(tmp_path) -> None:
    handle, tokens = tiny_handle("llama"), token_set((9, 14, 5, 11, 14, 8, 8, 6))
    whole = measure_distances(handle, tokens, criteria=["angular_last"], batch_size=2)
    assert whole.settling["angular_last"].rows == 8
    checkpoint = tmp_path / "measure.npz"

    class Killed(Exception):
        pass

    def kill(progress) -> None:  # noqa: ANN001
        if progress.done >= 4:
            raise Killed

    options = {"criteria": ["angular_last"], "batch_size": 2, "checkpoint": checkpoint}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shortviz.measure.distances.CHECKPOINT_SECONDS", -1.0)
        with pytest.raises(Killed):
            measure_distances(handle, tokens, watch=Watch(kill), **options)
    again = measure_distances(handle, tokens, **options)
    assert again.settling["angular_last"].needed == whole.settling["angular_last"].needed
    np.testing.assert_array_equal(again.settling["angular_last"].agree, whole.settling["angular_last"].agree)
    assert len(again.settling["angular_last"].needed) == NUM_LAYERS - 1


def test_rows_lost_with_their_file_are_not_made_up(tmp_path) -> None:
    kept = RowScores.beside(tmp_path / "c.npz", ["angular_last"], PAIRS)
    kept.add({"angular_last": scores(4, 1.0)})
    back = RowScores.beside(tmp_path / "c.npz", ["angular_last"], PAIRS)
    back.restore(3)
    np.testing.assert_array_equal(back.of("angular_last"), scores(4, 1.0)[:3])
    (tmp_path / "c.rows").unlink()
    lost = RowScores.beside(tmp_path / "c.npz", ["angular_last"], PAIRS)
    lost.restore(3)
    lost.add({"angular_last": scores(4, 1.0)})
    assert lost.of("angular_last") is None


def test_memory_for_rows_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(gram, "ROW_BYTES", 8 * PAIRS * 5)
    kept = RowScores.beside(None, ["angular_last"], PAIRS)
    for _ in range(3):
        kept.add({"angular_last": scores(3, 1.0)})
    assert kept.rows == 5


def test_a_run_keeps_it_and_runs_from_before_open_without() -> None:
    run = fixture_run(LAYERS)
    found = count_rows_needed(scores(16, 1.0), LAYERS)
    run = replace(run, distances=replace(run.distances, settling={"angular_last": found}))
    content = plain(run)
    back = parse_run(json.dumps(content), "here").distances.settling["angular_last"]
    assert (back.rows, back.counts, back.needed) == (found.rows, found.counts, found.needed)
    np.testing.assert_array_equal(back.agree, found.agree)
    del content["distances"]["settling"]
    assert parse_run(json.dumps(content), "here").distances.settling == {}
