"""The sampled tokens: how many, from which rows, the same for one process and for several."""

import pytest
import torch

from shortviz.measure import gram
from shortviz.measure.batches import places_of
from shortviz.measure.gram import SAMPLE_BYTES, SAMPLE_TOKENS, BoundaryStates, TokenSample


def sample_of(rows: int, mine: list[int] | None = None) -> TokenSample:
    return TokenSample.of_rows(rows, 3, 4, None, mine)


@pytest.mark.parametrize("rows", [1, 64, 100, 500, 767, 769, 5000])
def test_exactly_the_tokens_that_were_meant_are_taken_however_many_rows_there_are(rows: int) -> None:
    counts = sample_of(rows).counts
    assert sum(counts) == SAMPLE_TOKENS
    assert max(counts) - min(counts) <= 1


def test_a_wide_and_deep_model_has_a_smaller_sample() -> None:
    sample = TokenSample.of_rows(600, 127, 16384, None)
    assert sum(sample.counts) == SAMPLE_BYTES // (4 * 127 * 16384) < SAMPLE_TOKENS


def test_processes_take_together_what_one_would() -> None:
    batches = [[torch.zeros(3).numpy()] * size for size in (2, 3, 3, 1, 2)]
    whole = sample_of(2000).counts
    for size in (1, 2, 3):
        for rank in range(size):
            places = places_of(batches, range(rank, len(batches), size))
            assert sample_of(2000, places).counts == tuple(whole[place] for place in places)
    assert places_of(batches, [1, 3]) == [2, 3, 4, 8]


def test_rows_that_give_no_token_are_left_out_and_the_others_are_numbered_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gram, "SAMPLE_TOKENS", 2)
    sample, states = sample_of(6), BoundaryStates(3)
    hidden = torch.arange(6 * 5 * 4.0).reshape(6, 5, 4)
    for boundary in range(3):
        states.keep(boundary, hidden + boundary)
    sample.add(states, [5] * 6, 5)
    assert sample.counts == (0, 0, 1, 0, 0, 1)
    taken, rows = sample.tensors()
    assert rows.tolist() == [0, 1]
    torch.testing.assert_close(taken[:, 1], hidden[[2, 5], sample.positions(2, 5)[0]] + 1)
