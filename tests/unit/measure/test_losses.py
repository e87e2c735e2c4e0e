"""Losses of windows: exact against by hand, paired errors, kept base scores."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from shortviz.errors import NumericsError, Stopped, TextError
from shortviz.measure.losses import BaseScores, evaluate
from shortviz.model.prune import prune
from shortviz.progress import Progress, Watch
from shortviz.records.measured import Evaluation
from shortviz.records.plan import PrunePlan
from shortviz.records.sums import mean_and_stderr
from shortviz.records.text import WindowSet
from tests.support.families import build_tiny, handle_of, shared_handle, tiny_handle
from tests.support.tokens import window_set

PLAN = PrunePlan(num_layers=6, removed=(2, 3))


def numbers(evaluation: Evaluation) -> list[float]:
    """Everything measured but the seconds."""
    e = evaluation
    found = [e.score.nll, e.score.nll_stderr, e.nll_increase, e.nll_increase_stderr, e.kl, e.kl_stderr]
    found += [e.same_top1, e.same_top1_stderr]
    return [math.nan if x is None else x for x in found]


def test_the_uncut_model_alone_has_no_comparison() -> None:
    handle, windows = shared_handle("llama"), window_set()
    result = evaluate(handle, windows)
    assert result.base is None
    assert result.kl is None
    assert result.nll_increase is None
    assert result.removed == ()
    assert result.complete
    assert result.text is windows.info
    assert (result.score.tokens, result.score.windows) == (4 * 23, 4)
    assert result.score.parameters == handle.info.parameters
    assert result.score.bytes == handle.info.bytes
    assert result.score.cache_bytes_per_token == sum(handle.info.layer_cache_bytes) > 0
    assert result.score.forward_seconds > 0


def test_a_model_compared_with_an_equal_one_changes_nothing() -> None:
    handle = shared_handle("llama")
    same = prune(handle, PrunePlan(num_layers=6, removed=()))
    result = evaluate(same, window_set(), base=handle)
    assert (result.nll_increase, result.kl, result.same_top1) == (0.0, 0.0, 1.0)


def test_a_pruned_model_reports_what_it_saves_and_what_it_loses() -> None:
    handle = shared_handle("llama")
    result = evaluate(prune(handle, PLAN), window_set(), base=handle)
    assert result.removed == (2, 3)
    assert result.base is not None
    assert result.score.parameters < result.base.parameters == handle.info.parameters
    assert result.score.cache_bytes_per_token * 6 == result.base.cache_bytes_per_token * 4
    assert result.nll_increase == pytest.approx(result.score.nll - result.base.nll)
    assert result.kl is not None
    assert result.kl > 0
    assert result.same_top1 is not None
    assert 0 <= result.same_top1 < 1


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # the head in chunks; with a cap on its logits
def test_the_loss_of_each_token_is_that_of_both_models_own_logits(family: str) -> None:
    handle, windows = shared_handle(family), window_set(2)
    pruned, told = prune(handle, PLAN), []
    plain = evaluate(pruned, windows, base=handle)
    found = evaluate(pruned, windows, base=handle, on_tokens=lambda *both: told.append(both))
    assert numbers(found) == numbers(plain), "watching changes nothing"
    ((before, after),) = told  # of the first window alone
    ids = torch.tensor(windows.tokens[0])
    for one, scores in ((handle, before), (pruned, after)):
        with torch.inference_mode():
            logits = one.model(input_ids=ids[None].to(one.model.device), use_cache=False).logits[0, :-1].double().cpu()
        for at, row in enumerate(logits):
            shares = [math.exp(value - torch.logsumexp(row, 0)) for value in row.tolist()]
            assert float(scores.nll[at]) == pytest.approx(-math.log(shares[ids[at + 1]]), abs=1e-5)
            likely = sorted(range(len(shares)), key=lambda token: -shares[token])[:5]
            assert scores.shares[at].tolist() == pytest.approx([shares[token] for token in likely], abs=1e-5)
            assert [shares[token] for token in scores.top[at]] == pytest.approx([shares[t] for t in likely], abs=1e-6)
    assert float((after.nll - before.nll).mean()) == pytest.approx(
        float(found.score.window_nll[0]) - float(found.base.window_nll[0])  # type: ignore[union-attr]
    )


def test_the_error_of_the_same_next_token_is_over_windows() -> None:
    handle, windows = shared_handle("llama"), window_set(5)
    pruned = prune(handle, PLAN)
    result = evaluate(pruned, windows, base=handle)
    alone = [evaluate(pruned, replace(windows, tokens=windows.tokens[i : i + 1]), base=handle) for i in range(5)]
    shares = [one.same_top1 for one in alone]
    assert result.same_top1 == pytest.approx(np.mean(shares))
    assert result.same_top1_stderr == pytest.approx(1.1416 * np.std(shares, ddof=1) / math.sqrt(5))
    assert result.same_top1_stderr > 0
    assert math.isnan(alone[0].same_top1_stderr)


def test_the_error_of_the_difference_is_paired() -> None:
    handle, windows = shared_handle("llama"), window_set(5)
    pruned = prune(handle, PLAN)
    result = evaluate(pruned, windows, base=handle)
    alone = [WindowSet(tokens=windows.tokens[i : i + 1], info=windows.info) for i in range(5)]
    differences = [evaluate(pruned, w).score.nll - evaluate(handle, w).score.nll for w in alone]
    assert result.nll_increase_stderr == pytest.approx(1.1416 * np.std(differences, ddof=1) / math.sqrt(5))


def test_one_window_has_no_error_bar() -> None:
    handle = shared_handle("llama")
    result = evaluate(prune(handle, PLAN), window_set(1), base=handle)
    assert math.isnan(result.score.nll_stderr)
    assert result.nll_increase_stderr is not None
    assert math.isnan(result.nll_increase_stderr)
    assert result.kl_stderr is not None
    assert math.isnan(result.kl_stderr)


def test_mean_and_stderr_of_known_samples() -> None:
    assert mean_and_stderr([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1.3213 / math.sqrt(3)))
    assert mean_and_stderr(np.arange(8.0)) == pytest.approx((3.5, math.sqrt(6 / 8)))


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7])
def test_one_error_of_few_samples_covers_as_much_as_one_of_many(count: int) -> None:
    draw = np.random.default_rng(count)
    samples = draw.normal(size=(20_000, count))
    found = [mean_and_stderr(row) for row in samples]
    covered = np.mean([abs(mean) < error for mean, error in found])
    assert covered == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.012)  # 3.6 errors of a share of 20,000


def test_kept_base_scores_give_the_same_numbers_without_running_the_uncut_model_again() -> None:
    handle, windows = tiny_handle("llama"), window_set()
    cache, calls = BaseScores(handle), []
    first, second = (prune(handle, PrunePlan(num_layers=6, removed=removed)) for removed in ((1,), (2, 3)))
    evaluate(first, windows, base=handle, base_scores=cache)
    assert cache.windows == 4
    assert cache.bytes == 4 * 23 * 32 * 4
    hook = handle.model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    cached = evaluate(second, windows, base=handle, base_scores=cache)
    assert calls == []
    hook.remove()
    assert numbers(cached) == numbers(evaluate(second, windows, base=handle))


def test_base_scores_grow_by_the_windows_that_are_new() -> None:
    handle, cache = shared_handle("llama"), BaseScores(shared_handle("llama"))
    pruned, windows = prune(handle, PLAN), window_set(3)
    few = WindowSet(tokens=windows.tokens[:2], info=windows.info)
    evaluate(pruned, few, base=handle, base_scores=cache)
    evaluate(pruned, windows, base=handle, base_scores=cache)
    assert cache.windows == 3


def test_base_scores_stay_below_their_limit() -> None:
    handle = shared_handle("llama")
    cache = BaseScores(handle, limit_bytes=2 * 23 * 32 * 4)
    result = evaluate(prune(handle, PLAN), window_set(), base=handle, base_scores=cache)
    assert cache.windows == 2
    assert result.score.windows == 4


def test_base_scores_of_another_model_are_refused() -> None:
    handle = shared_handle("llama")
    with pytest.raises(ValueError, match="another model"):
        evaluate(prune(handle, PLAN), window_set(), base=handle, base_scores=BaseScores(shared_handle("gpt2")))


def test_partial_results_come_after_each_window() -> None:
    handle, partial = shared_handle("llama"), []

    def keep(progress: Progress) -> None:
        assert (progress.stage, progress.unit, progress.total) == ("evaluate", "windows", 3)
        assert progress.snapshot is not None
        partial.append(progress.snapshot())

    result = evaluate(prune(handle, PLAN), window_set(3), base=handle, watch=Watch(keep))
    assert [p.score.windows for p in partial] == [1, 2, 3]
    assert [p.complete for p in partial] == [False, False, True]
    assert [p.base.windows for p in partial] == [1, 2, 3]
    assert numbers(partial[-1]) == numbers(result)


def test_a_stop_keeps_the_windows_scored_so_far() -> None:
    handle, stop = shared_handle("llama"), threading.Event()
    result = evaluate(handle, window_set(), watch=Watch(lambda p: stop.set() if p.done == 2 else None, stop))
    assert result.score.windows == 2
    assert not result.complete
    assert result.score.tokens == 2 * 23


def test_a_stop_before_the_first_window_has_no_result() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped, match="before the first window"):
        evaluate(shared_handle("llama"), window_set(), watch=Watch(stop=stop))


def test_a_window_beyond_the_context_is_refused() -> None:
    with pytest.raises(TextError, match="window of 513 tokens is longer than the model's context of 512"):
        evaluate(shared_handle("llama"), window_set(1, 513))


def test_tokens_of_another_tokenizer_are_refused() -> None:
    windows = window_set(1)
    windows.tokens[0, 3] = 260
    with pytest.raises(TextError, match="hold token 260, but the model's vocabulary has 260"):
        evaluate(shared_handle("llama"), windows)


def test_not_a_number_names_the_first_layer_it_comes_from() -> None:
    model = build_tiny("llama")
    model.model.layers[3].mlp.down_proj.weight[0, 0] = math.nan
    handle = handle_of(model, "broken")
    with pytest.raises(NumericsError, match="Layer 3 of broken gives NaN or Inf in float32"):
        evaluate(handle, window_set(1))
    assert not any(layer._forward_pre_hooks for layer in model.model.layers)
    with pytest.raises(NumericsError, match="Layer 3 of broken"):
        evaluate(prune(handle, PrunePlan(num_layers=6, removed=(1,))), window_set(1))


def test_infinity_behind_the_last_layer_is_named_too() -> None:
    model = build_tiny("llama")
    model.model.norm.weight[0] = math.inf
    with pytest.raises(NumericsError, match="The final norm or the head of broken"):
        evaluate(handle_of(model, "broken"), window_set(1))


def test_logits_are_made_for_a_few_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    handle, windows, sizes = tiny_handle("llama"), window_set(2, 101), []
    pruned = prune(handle, PLAN)
    whole = evaluate(pruned, windows, base=handle)
    monkeypatch.setattr("shortviz.measure.logits.CHUNK_BYTES", 16 * 260 * 4)
    hook = pruned.model.lm_head.register_forward_hook(lambda _m, _a, output: sizes.append(output.shape[1]))
    chunked = evaluate(pruned, windows, base=handle)
    hook.remove()
    assert max(sizes) == 16
    assert numbers(chunked) == pytest.approx(numbers(whole), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_scored_in_float32_or_wider(dtype: torch.dtype) -> None:
    handle, windows = tiny_handle("llama", dtype), window_set(2)
    result = evaluate(prune(handle, PLAN), windows, base=handle)
    with torch.inference_mode():
        ids = torch.tensor(windows.tokens, device=handle.model.device)
        logits = handle.model(input_ids=ids).logits[:, :-1].double().cpu()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(windows.tokens[:, 1:]).flatten())
    assert result.base is not None
    assert result.base.nll == pytest.approx(float(expected), abs=1e-10 if dtype == torch.float64 else 1e-2)


def test_a_stop_is_heard_within_a_window() -> None:
    handle, windows, stop, layers = tiny_handle("llama"), window_set(3), threading.Event(), []
    pruned = prune(handle, PLAN)

    def stop_in_the_second_window(*_: object) -> None:
        layers.append(1)
        if len(layers) == 6:  # the cut model has four layers
            stop.set()

    cache = BaseScores(handle)
    for tokens in windows.tokens:
        cache.window(tokens)
    for layer in pruned.model.model.layers:
        layer.register_forward_hook(stop_in_the_second_window)
    result = evaluate(pruned, windows, base=handle, base_scores=cache, watch=Watch(stop=stop))
    assert len(layers) == 6
    assert (result.score.windows, result.complete) == (1, False)
    assert not any(layer._forward_pre_hooks for layer in pruned.model.model.layers)


def test_a_stop_within_the_first_window_leaves_nothing_of_it() -> None:
    handle, stop = tiny_handle("llama"), threading.Event()
    cache = BaseScores(handle)
    handle.model.model.layers[1].register_forward_hook(lambda *_: stop.set())
    with pytest.raises(Stopped, match="no result yet"):
        evaluate(prune(handle, PLAN), window_set(2), base=handle, base_scores=cache, watch=Watch(stop=stop))
    assert cache.windows == 0
