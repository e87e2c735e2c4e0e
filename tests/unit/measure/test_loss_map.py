"""The map of losses: coarse first, refined in any order, stopped and gone on, and its fallback without replay."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from shortviz.errors import NumericsError, RunError, Stopped, TextError
from shortviz.measure.logits import open_head
from shortviz.measure.loss_map import PrunedEngine, ReplayEngine, measure_losses, open_engine
from shortviz.measure.losses import compare_window, evaluate
from shortviz.measure.replay import find_tail
from shortviz.model.prune import prune
from shortviz.progress import Progress, Watch
from shortviz.records.measured import BlockLosses
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import WindowSet
from tests.support.families import NUM_LAYERS, build_tiny, handle_of, shared_handle, tiny_handle, tiny_tokens
from tests.support.maps import assert_same, map_windows

BLOCKS = 20
"""Of 6 layers, n = 1..5."""


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every row of the map be a group of its own, so that a tiny map has several steps."""
    monkeypatch.setattr("shortviz.measure.loss_map.GROUP_TOKENS", 1)


def test_the_whole_map_is_there_coarse_before_the_first_window_is_done(small_groups: None) -> None:
    partial: list[BlockLosses] = []
    ticks: list[float] = []

    def keep(progress: Progress) -> None:
        look = len(partial) < 5
        assert (progress.stage, progress.total) == (("first look", BLOCKS) if look else ("map", 4 * BLOCKS))
        assert progress.unit == "cells"
        ticks.append(progress.done)
        if progress.snapshot is not None:
            partial.append(progress.snapshot())

    windows = map_windows()
    result = measure_losses(shared_handle("llama"), windows, coarse_tokens=16, watch=Watch(keep))
    assert len(partial) == 4 * 5
    assert ticks == sorted(ticks), "it never goes back"
    assert len(set(ticks)) > 2 * 4 * 5, "it moves within a group of cells, which are ready together"
    first_look = partial[4]
    cells = np.isfinite(result.nll.mean)
    assert cells.sum() == BLOCKS
    assert (np.isfinite(first_look.nll.mean) == cells).all()
    assert (first_look.windows == 0).all()
    assert (first_look.tokens[cells] == 15).all()
    assert np.isnan(first_look.nll.stderr).all()
    assert first_look.nll.samples == 0
    assert not first_look.complete
    assert first_look.base.tokens == 15
    alone = WindowSet(tokens=windows.tokens[:1, :16], info=windows.info)
    assert first_look.base.nll == pytest.approx(evaluate(shared_handle("llama"), alone).score.nll, abs=1e-6)
    assert (result.windows[cells] == 3).all()
    assert (result.tokens[cells] == 3 * 39).all()
    assert result.nll.samples == 3
    assert result.complete
    assert result.base.tokens == 3 * 39
    assert np.isfinite(result.increase.stderr[cells]).all()


def test_a_partial_window_refines_some_rows_and_keeps_the_first_look_of_the_others(small_groups: None) -> None:
    stop = threading.Event()
    result = measure_losses(
        shared_handle("llama"),
        map_windows(),
        coarse_tokens=16,
        watch=Watch(lambda p: stop.set() if p.done == BLOCKS + 6 else None, stop),
    )
    assert (result.windows[0, :6] == 1).all()
    assert (result.windows[1:] == 0).all()
    assert (result.tokens[0, :6] == 39).all()
    assert (result.tokens[1, :5] == 15).all()
    assert np.isfinite(result.nll.mean).sum() == BLOCKS
    assert not result.complete
    assert result.base.windows == 1


def test_a_stop_before_the_first_rows_has_no_result() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped, match="before the first rows of the map"):
        measure_losses(shared_handle("llama"), map_windows(), watch=Watch(stop=stop))


def test_rows_in_view_come_first_and_change_no_number(small_groups: None) -> None:
    order: list[tuple[int, ...]] = []

    def keep(progress: Progress) -> None:
        if progress.snapshot is None:  # within a group
            return
        order.append(tuple(int(n) + 1 for n in np.flatnonzero(progress.snapshot().windows.any(1))))

    handle, windows = shared_handle("llama"), map_windows(1)
    wanted = measure_losses(handle, windows, coarse_tokens=0, priority=[4, 2], watch=Watch(keep))
    assert order[:3] == [(4,), (2, 4), (1, 2, 4)]
    assert_same(wanted, measure_losses(handle, windows, coarse_tokens=0))


def test_one_window_has_no_error_bar() -> None:
    result = measure_losses(shared_handle("llama"), map_windows(1))
    assert np.isnan(result.nll.stderr).all()
    assert np.isnan(result.base.nll_stderr)


@pytest.mark.parametrize("steps", [1, 4, 6, 13, 19])
def test_a_stopped_run_goes_on_from_its_checkpoint_bit_equal(
    small_groups: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr("shortviz.measure.loss_map.CHECKPOINT_SECONDS", 0.0)
    handle, windows, path = shared_handle("llama"), map_windows(), tmp_path / "losses.npz"
    whole = measure_losses(handle, windows, coarse_tokens=16)
    seen: list[int] = []

    class Killed(BaseException):
        pass

    def kill(progress: Progress) -> None:
        if progress.snapshot is None:  # within a group
            return
        seen.append(int(progress.done))
        if len(seen) == steps:
            raise Killed

    with pytest.raises(Killed):
        measure_losses(handle, windows, coarse_tokens=16, checkpoint=path, watch=Watch(kill))
    resumed: list[int] = []
    result = measure_losses(
        handle,
        windows,
        coarse_tokens=16,
        checkpoint=path,
        watch=Watch(lambda p: resumed.append(int(p.done)) if p.snapshot else None),
    )
    assert len(seen) + len(resumed) == 20
    assert_same(result, whole)


def test_a_checkpoint_of_other_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "losses.npz"
    measure_losses(shared_handle("llama"), map_windows(1), checkpoint=path)
    with pytest.raises(RunError, match="belongs to another measurement"):
        measure_losses(shared_handle("llama"), map_windows(1, seed=2), checkpoint=path)


def test_layers_whose_arguments_fit_one_batch_only_are_replayed_one_block_at_a_time() -> None:
    tokens = tiny_tokens(40)[0].numpy()
    stacked, single = (open_engine(shared_handle(name), tokens) for name in ("llama", "bloom"))
    assert isinstance(stacked, ReplayEngine)
    assert stacked.replay.stacked
    assert isinstance(single, ReplayEngine)
    assert not single.replay.stacked


def test_a_model_whose_replay_is_not_exact_falls_back_to_the_pruned_models() -> None:
    model = build_tiny("llama")
    model.model.norm.register_forward_hook(lambda _m, args, out: out + 1e-3 * args[0].mean())
    model.lm_head.register_forward_pre_hook(lambda _m, args: (args[0] * 1.5,))
    handle, windows = handle_of(model, "odd"), map_windows(1, 24)
    result = measure_losses(handle, windows)
    assert not result.replayed
    assert isinstance(open_engine(handle, windows.tokens[0]), PrunedEngine)


def test_the_fallback_gives_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    handle, windows = shared_handle("qwen2"), map_windows(2, 24)
    replayed = measure_losses(handle, windows)
    monkeypatch.setattr("shortviz.measure.loss_map.open_engine", pruned_engine)
    pruned = measure_losses(handle, windows)
    assert replayed.replayed
    assert not pruned.replayed
    cells = np.isfinite(pruned.nll.mean)
    for name in ("nll", "increase", "kl"):
        ours, theirs = (getattr(r, name) for r in (replayed, pruned))
        np.testing.assert_allclose(ours.mean[cells], theirs.mean[cells], atol=1e-5)
        np.testing.assert_allclose(ours.stderr[cells], theirs.stderr[cells], atol=1e-5)


def test_a_cut_model_that_overflows_is_an_empty_cell_also_where_pruned_models_are_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def overflows(head, tokens, base):  # type: ignore[no-untyped-def]  # stands in for compare_window
        if head.handle.plan.removed == (2, 3):
            raise NumericsError("Layer 4 gives NaN or Inf")
        return compare_window(head, tokens, base)

    monkeypatch.setattr("shortviz.measure.loss_map.open_engine", pruned_engine)
    monkeypatch.setattr("shortviz.measure.loss_map.compare_window", overflows)
    result = measure_losses(shared_handle("llama"), map_windows(2, 24), coarse_tokens=0)
    assert np.isnan(result.nll.at(Block(start=2, n=2))).all()
    assert int(np.isfinite(result.nll.mean).sum()) == BLOCKS - 1


def pruned_engine(handle, tokens):  # type: ignore[no-untyped-def]  # stands in for open_engine
    return PrunedEngine(handle=handle, head=open_head(handle, torch.tensor(tokens)))


def test_the_final_norm_is_found_by_watching() -> None:
    handle = shared_handle("gpt2")
    assert find_tail(handle, tiny_tokens(8)[0]) == (handle.model.transformer.ln_f,)


def test_a_map_of_a_pruned_model_counts_its_own_layers() -> None:
    pruned = prune(shared_handle("llama"), PrunePlan(num_layers=NUM_LAYERS, removed=(2,)))
    windows = map_windows(2, 24)
    result = measure_losses(pruned, windows)
    assert result.num_layers == 5
    twice = prune(pruned, PrunePlan.of_blocks(5, Block(start=1, n=2)))
    assert result.nll.at(Block(start=1, n=2))[0] == pytest.approx(evaluate(twice, windows).score.nll, abs=1e-5)


def test_not_a_number_names_its_layer_in_the_map_too() -> None:
    model = build_tiny("llama")
    model.model.layers[4].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="Layer 4 of broken"):
        measure_losses(handle_of(model, "broken"), map_windows(1))


def test_a_window_beyond_the_context_is_refused() -> None:
    with pytest.raises(TextError, match="longer than the model's context"):
        measure_losses(shared_handle("llama"), map_windows(1, 513))


def test_no_hook_is_left_when_the_work_is_interrupted() -> None:
    class Killed(BaseException):
        pass

    def kill(_progress: Progress) -> None:
        raise Killed

    handle = tiny_handle("llama")
    with pytest.raises(Killed):
        measure_losses(handle, map_windows(1), watch=Watch(kill))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in handle.model.modules())
