"""The parts of healing: presets, schedule, seams, text, targets."""

from dataclasses import replace

import numpy as np
import pytest

from shortviz.errors import ShortvizError, TextError
from shortviz.heal.data import batch_of, pack, split_heldout
from shortviz.heal.objectives import Seam, seams_of
from shortviz.heal.student import find_targets
from shortviz.heal.training import learning_rate_at
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.records.heal import PRESETS, HealSettings, preset
from shortviz.records.plan import PrunePlan
from shortviz.records.text import TextInfo, TokenSet
from tests.support.families import shared_handle


@pytest.fixture(scope="module")
def base() -> ModelHandle:
    return shared_handle("llama")


def test_a_preset_is_fitted_to_the_model_and_its_changes_are_not(base):
    fitted = preset("paper", base.info)
    assert fitted.length == 512, "the tiny model's context"
    assert preset("paper").length == 2048
    assert preset("quick", base.info, length=64, steps=3).length == 64
    with pytest.raises(ShortvizError, match="no preset 'fast'; choose one of quick, good, paper"):
        preset("fast")
    with pytest.raises(ShortvizError, match="no setting 'lr'"):
        preset("quick", lr=1)
    assert set(PRESETS) == {"quick", "good", "paper"}


def test_the_learning_rate_warms_up_and_falls_to_nothing_along_a_cosine():
    settings = HealSettings(steps=110, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate_at(settings, step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[60] == pytest.approx(0.5)
    assert rates[-1] < 0.001
    assert max(rates) == 1.0


def test_seams_are_where_the_kept_layers_meet(base):
    def seams(*removed: int) -> tuple[Seam, ...]:
        return seams_of(base, prune(base, PrunePlan(num_layers=6, removed=removed)))

    assert seams(2, 3) == (Seam(boundary=2, teacher=4),)
    assert seams(0, 3, 5) == (Seam(boundary=0, teacher=1), Seam(boundary=2, teacher=4), Seam(boundary=3, teacher=6))
    once = prune(base, PrunePlan(num_layers=6, removed=(2,)))
    twice = prune(once, PrunePlan(num_layers=5, removed=(2,)))
    assert seams_of(once, twice) == (Seam(boundary=2, teacher=3),)


def test_every_window_comes_once_in_each_pass_and_the_order_depends_on_the_seed():
    windows = np.arange(10).reshape(5, 2)
    first = batch_of(windows, 0, 5, seed=0)
    assert sorted(first[:, 0]) == [0, 2, 4, 6, 8]
    again = np.concatenate([batch_of(windows, 0, 2, 0), batch_of(windows, 2, 3, 0)])
    assert np.array_equal(first, again)
    across = batch_of(windows, 4, 3, 0)
    assert np.array_equal(across[0], first[4])
    assert any(not np.array_equal(batch_of(windows, 0, 5, seed), first) for seed in range(1, 4))


def _tokens(*rows: list[int], opening: tuple[int, ...] = (), between: tuple[int, ...] = ()) -> TokenSet:
    arrays = tuple(np.asarray(row, dtype=np.int64) for row in rows)
    size = sum(len(row) for row in arrays)
    info = TextInfo(source="test text", rows=len(rows), tokens=size, fingerprint="f")
    return TokenSet(rows=arrays, info=info, opening=opening, between=between)


def test_rows_are_packed_with_a_separator_and_the_rest_is_left_out():
    assert pack(_tokens([1, 2, 3], [4, 5], between=(9,)), 3).tolist() == [[1, 2, 3], [9, 4, 5]]
    assert pack(_tokens([1, 2, 3], [4, 5]), 2).tolist() == [[1, 2], [3, 4]]


def test_rows_of_one_text_are_packed_with_nothing_between_held_out_ones_too():
    one = _tokens([1, 2], [3, 4], [5, 6], between=(9,))
    assert pack(replace(one, continued=frozenset({1})), 4).tolist() == [[1, 2, 3, 4]]
    rows = [[10 * i + k for k in range(10)] for i in range(1, 21)]
    text = replace(_tokens(*rows, between=(9,)), continued=frozenset(range(1, 20)))
    train, held = split_heldout(text, windows=2, window=8)
    assert held.tokens.flatten().tolist() == [10 * i + k for i in (19, 20) for k in range(10)][:16]
    assert 9 not in pack(train, 8)


def test_every_window_opens_as_the_rows_do():
    rows = [[0, *range(10 * i, 10 * i + 7)] for i in range(1, 9)]
    found = pack(_tokens(*rows, opening=(0,), between=(9,)), 4)
    assert found[:3].tolist() == [[0, 10, 11, 12], [0, 13, 14, 15], [0, 16, 9, 20]]
    assert (found[:, 0] == 0).all()
    assert 0 not in found[:, 1:], "the opening of a row is no text"
    for text in (_tokens(*rows, opening=(0,)), _tokens([0, *range(1, 100)], opening=(0,))):  # whole rows, part of one
        train, held = split_heldout(text, windows=2, window=5)
        assert held.tokens[:, 0].tolist() == [0, 0]
        assert 0 not in held.tokens[:, 1:]
        assert all(row[0] == 0 for row in train.rows)
        assert train.opening == (0,)
        assert not set(np.concatenate(train.rows)) & set(held.tokens[:, 1:].flatten())
    with pytest.raises(TextError, match=r"fewer than one training window of 9 needs \(8\); .* length of 2 to 8"):
        pack(_tokens(rows[0], opening=(0,)), 9)


def test_held_out_text_is_the_end_and_not_trained_on():
    rows = [[i * 10 + k for k in range(10)] for i in range(20)]
    train, held = split_heldout(_tokens(*rows), windows=2, window=8)
    assert held.tokens.shape == (2, 8)
    seen = set(np.concatenate(train.rows))
    assert not seen & set(held.tokens.flatten())
    assert train.info.fingerprint != held.info.fingerprint
    one_row = split_heldout(_tokens(list(range(100))), windows=2, window=8)
    assert len(one_row[0].rows[0]) == 84
    assert one_row[1].tokens[0, 0] == 84
    with pytest.raises(TextError, match="at least 40 tokens"):
        split_heldout(_tokens([1] * 30), windows=2, window=8)


def test_targets_are_found_by_structure():
    def mlp(name: str) -> tuple[str, ...]:
        found = find_targets(shared_handle(name).model, "mlp")
        return (*found.modules, *found.parameters)

    assert mlp("llama") == ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert mlp("gpt2") == ("mlp.c_fc", "mlp.c_proj")
    assert mlp("phi3") == ("mlp.gate_up_proj", "mlp.down_proj")
    assert mlp("opt") == ("fc1", "fc2")
    assert mlp("mixtral") == ("mlp.experts.down_proj", "mlp.experts.gate_up_proj")
    assert "The layers have no MLP" in find_targets(shared_handle("mamba").model, "mlp").note
    everything = find_targets(shared_handle("llama").model, "all").modules
    assert set(everything) - set(mlp("llama")) == {f"self_attn.{part}_proj" for part in "qkvo"}
    assert find_targets(shared_handle("llama").model, "q_proj, mlp.up_proj").modules == (
        "self_attn.q_proj",
        "mlp.up_proj",
    )
