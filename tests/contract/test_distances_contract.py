"""Distances of every family against an independent float64 computation, and what a measurement leaves behind."""

import threading

import numpy as np
import pytest
import torch

from shortviz import criteria
from shortviz.criteria.base import Criterion
from shortviz.criteria.linear_replacement import RIDGE
from shortviz.errors import NumericsError, RunError, ShortvizError, Stopped, TextError
from shortviz.measure.distances import measure_distances
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack
from shortviz.progress import Watch
from shortviz.records.plan import Block
from shortviz.records.text import TokenSet
from tests.support import reference
from tests.support.families import FAMILIES, build_tiny, handle_of, tiny_config, tiny_handle
from tests.support.tokens import LENGTHS, token_set


def hooks_on(handle: ModelHandle) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in handle.model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_equals_the_slow_reference_with_padded_batches(family):
    # float64 throughout: what is left is the order of summation, not rounding of the forward pass. Experts are
    # multiplied by a kernel that knows no float64, nor does xglm; there the written float32 floor stands.
    only_float32 = family in ("mixtral", "qwen2_moe", "gpt_oss", "minimax", "xglm")
    handle = tiny_handle(family, dtype=torch.float32 if only_float32 else torch.float64)
    tokens = token_set()
    measured = measure_distances(handle, tokens, batch_size=3)
    stack = layer_stack(handle.model)
    sequences = [reference.boundaries(stack.decoder, stack.layers, row) for row in tokens.rows]
    # A few families compute parts (norms, recurrences, routers) in float32 whatever the dtype.
    floor = 5e-4 if only_float32 else 2e-5
    for name in reference.RULES:
        mean, error = reference.distances(sequences, name)
        scale = max(1.0, float(np.nanmax(mean)))
        np.testing.assert_allclose(measured.criteria[name].mean, mean, rtol=0, atol=floor * scale, err_msg=name)
        np.testing.assert_allclose(measured.criteria[name].stderr, error, rtol=0, atol=floor * scale, err_msg=name)
    first = np.mean([np.linalg.norm(x[:, 0], axis=-1) for x in sequences], axis=0)
    np.testing.assert_allclose(measured.norms.first, first, rtol=1e-4)
    assert measured.samples == len(LENGTHS)
    assert hooks_on(handle) == 0


def test_linear_replacement_equals_the_primal_ridge_fit():
    handle, tokens = tiny_handle("llama"), token_set((40,) * 9)
    measured = measure_distances(handle, tokens, batch_size=4, criteria=["linear_replacement"])
    stack = layer_stack(handle.model)
    states = [reference.boundaries(stack.decoder, stack.layers, row) for row in tokens.rows]
    # 768 tokens over 9 rows are more than the rows have: every position but the first is sampled.
    expected = reference.linear_replacement(states, [list(range(1, 40))] * 9, RIDGE)
    grid = measured.criteria["linear_replacement"]
    np.testing.assert_allclose(grid.mean, expected, rtol=1e-4)
    assert grid.samples == 3
    assert (grid.stderr[~np.isnan(grid.mean)] > 0).all()


def test_linear_replacement_bears_a_boundary_where_all_tokens_are_alike():
    fit = criteria.info("linear_replacement").from_sample
    states = torch.randn(12, 4, 8, generator=torch.Generator().manual_seed(0))
    states[:, 0] = 1.0  # the embeddings of a text of one word
    assert torch.isfinite(fit(states, torch.arange(12))).all()


def test_linear_replacement_is_left_empty_where_the_text_has_too_few_rows_to_score_on():
    measured = measure_distances(tiny_handle("llama"), token_set((12, 12, 12)))
    grid = measured.criteria["linear_replacement"]
    assert grid.samples == 0
    assert np.isnan(grid.mean).all()
    assert measured.samples == 3


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_result_does_not_depend_on_the_batch_size(batch_size):
    handle = tiny_handle("llama", dtype=torch.float64)
    one = measure_distances(handle, token_set(), batch_size=batch_size)
    other = measure_distances(handle, token_set(), batch_size=3)
    for name, grid in one.criteria.items():
        floor = 1e-4 if name == "linear_replacement" else 1e-9  # its sample of tokens is kept in float32
        np.testing.assert_allclose(grid.mean, other.criteria[name].mean, rtol=floor, atol=floor)


def test_cells_are_nan_exactly_where_the_block_does_not_fit():
    grid = measure_distances(tiny_handle("llama"), token_set()).criteria["angular_last"]
    n, start = np.indices(grid.mean.shape)
    np.testing.assert_array_equal(np.isnan(grid.mean), start + n + 1 > 6)
    np.testing.assert_array_equal(np.isnan(grid.stderr), start + n + 1 > 6)


def test_one_row_has_no_error_bar_rather_than_a_fake_zero():
    grid = measure_distances(tiny_handle("llama"), token_set((12,))).criteria["angular_mean"]
    assert np.isfinite(grid.mean[0, 0])
    assert np.isnan(grid.stderr).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt", "bloom", "phi"])
def test_a_layer_made_identity_has_distance_exactly_zero(family):
    model = build_tiny(family)
    layer = layer_stack(model).layers[2]
    for name, parameter in layer.named_parameters():
        # Zero what writes into the residual stream: in every family the last projection of attention and of the MLP,
        # and where a norm follows the projection, its scale.
        parameter.zero_() if parameter.ndim > 1 or "bias" in name or "post" in name else None
    handle = handle_of(model)
    measured = measure_distances(handle, token_set(), batch_size=2)
    for name in reference.RULES:
        grid = measured.criteria[name]
        assert grid.at(Block(start=2, n=1))[0] == 0.0, name
        assert grid.at(Block(start=1, n=1))[0] > 0.0, name


def test_nan_in_a_layer_is_refused_by_its_number_and_leaves_no_hook():
    model = build_tiny("llama")
    model.model.layers[3].mlp.down_proj.weight[0, 0] = float("nan")
    handle = handle_of(model)
    with pytest.raises(NumericsError, match=r"Layer 3 gives NaN or Inf activations"):
        measure_distances(handle, token_set())
    assert hooks_on(handle) == 0


def test_a_zero_vector_has_no_angle_and_is_reported():
    model = build_tiny("llama")
    model.model.embed_tokens.weight.zero_()
    with pytest.raises(NumericsError, match="exactly zero at boundary 0"):
        measure_distances(handle_of(model), token_set(), criteria=["angular_last"])
    only_norms = measure_distances(handle_of(model), token_set(), criteria=["euclidean_last"])
    assert only_norms.criteria["euclidean_last"].mean[0, 0] == 0.0


def test_an_exception_in_the_callback_leaves_no_hook_and_frees_the_lock():
    handle = tiny_handle("llama")

    def fail(_progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_distances(handle, token_set(), watch=Watch(fail))
    assert hooks_on(handle) == 0
    assert measure_distances(handle, token_set()).samples == len(LENGTHS)


def test_partial_results_stream_out_and_stop_keeps_what_there_is():
    handle, stop, seen = tiny_handle("llama"), threading.Event(), []

    def watch(progress):
        seen.append((progress.done, progress.total, progress.unit, progress.snapshot().samples))
        if progress.done >= 2:
            stop.set()

    kept = measure_distances(handle, token_set(), batch_size=1, watch=Watch(watch, stop))
    assert seen == [(1, 5, "rows", 1), (2, 5, "rows", 2)]
    assert kept.samples == 2


def test_stopped_before_the_first_batch_says_so():
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped, match="before the first batch"):
        measure_distances(tiny_handle("llama"), token_set(), watch=Watch(stop=stop))


def test_a_stopped_measurement_resumes_bit_equal_from_its_checkpoint(tmp_path):
    handle, stop, path = tiny_handle("llama"), threading.Event(), tmp_path / "c.npz"
    tokens = token_set(tuple(range(2, 40)))
    whole = measure_distances(handle, tokens, batch_size=4)
    # The first pass writes its last checkpoint when it has finished only half of the rows' batches.
    half = TokenSet(rows=tokens.rows, info=tokens.info)

    def watch(progress):
        if progress.done >= 20:
            stop.set()

    from shortviz.measure import distances as module

    before, module.CHECKPOINT_SECONDS = module.CHECKPOINT_SECONDS, 0.0
    try:
        measure_distances(handle, half, batch_size=4, checkpoint=path, watch=Watch(watch, stop))
    finally:
        module.CHECKPOINT_SECONDS = before
    rows = []
    resumed = measure_distances(
        handle, tokens, batch_size=4, checkpoint=path, watch=Watch(lambda p: rows.append(p.done))
    )
    assert rows[0] == 24, "the resumed pass starts after the 20 rows of the checkpoint"
    for name, grid in whole.criteria.items():
        np.testing.assert_array_equal(resumed.criteria[name].mean, grid.mean)
        np.testing.assert_array_equal(resumed.criteria[name].stderr, grid.stderr)


def test_a_checkpoint_of_other_text_is_refused(tmp_path):
    handle, path = tiny_handle("llama"), tmp_path / "c.npz"
    measure_distances(handle, token_set(), checkpoint=path)
    with pytest.raises(RunError, match="belongs to another measurement"):
        measure_distances(handle, token_set(seed=4), checkpoint=path)


def test_a_criterion_of_ones_own_needs_only_a_score():
    mine = Criterion(
        name="mine",
        label="mine",
        units="-",
        low=0.0,
        high=float("inf"),
        tokens="all",
        source="a test",
        explanation="a test",
        score=reference_like_euclidean,
    )
    handle, tokens = tiny_handle("llama", dtype=torch.float64), token_set()
    measured = measure_distances(handle, tokens, criteria=[mine, "relative_magnitude"])
    stack = layer_stack(handle.model)
    states = [reference.boundaries(stack.decoder, stack.layers, row) for row in tokens.rows]
    expected = np.mean([np.mean([reference.euclidean(x[1, t], x[4, t]) for t in range(1, x.shape[1])]) for x in states])
    np.testing.assert_allclose(measured.criteria["mine"].at(Block(start=1, n=3))[0], expected, rtol=1e-6)


def reference_like_euclidean(u, v):
    return (v - u).norm(dim=-1)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda u, v: (v - u).sum(), "'mine' returned shape"),
        (lambda u, v: (v - u).norm(dim=-1) * float("nan"), "'mine' returned NaN or Inf"),
    ],
)
def test_a_broken_criterion_is_named(score, message):
    mine = Criterion(
        name="mine", label="m", units="-", low=0.0, high=1.0, tokens="last", source="-", explanation="-", score=score
    )
    with pytest.raises(NumericsError, match=message):
        measure_distances(tiny_handle("llama"), token_set(), criteria=[mine])


@pytest.mark.parametrize(
    ("fast", "message"),
    [
        (lambda pairs: pairs.dot[:, :1], "fast path of criterion 'mine' returned shape"),
        (lambda pairs: pairs.dot * float("nan"), "'mine' returned NaN or Inf"),
    ],
)
def test_a_broken_fast_path_is_named(fast, message):
    mine = Criterion(
        name="mine", label="m", units="-", low=0.0, high=1.0, tokens="all", source="-", explanation="-", from_pairs=fast
    )
    with pytest.raises(NumericsError, match=message):
        measure_distances(tiny_handle("llama"), token_set(), criteria=[mine])


def test_rows_that_do_not_fit_the_model_are_refused():
    with pytest.raises(TextError, match="A row of 600 tokens is longer than the model's context of 512"):
        measure_distances(tiny_handle("gpt2"), token_set((600, 9)))
    odd = TokenSet(rows=(np.array([1, 70_000]),), info=token_set((2,)).info)
    with pytest.raises(TextError, match="The rows hold token 70000"):
        measure_distances(tiny_handle("llama"), odd)


def test_a_bad_batch_size_is_refused():
    with pytest.raises(ShortvizError, match="batch size is 0"):
        measure_distances(tiny_handle("llama"), token_set(), batch_size=0)


def test_the_lm_head_is_not_run():
    handle, calls = tiny_handle("llama"), []
    hook = handle.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    measure_distances(handle, token_set())
    hook.remove()
    assert calls == []


def test_a_sink_writing_layer_is_named():
    model = build_tiny("gpt2", config=tiny_config("gpt2"))
    layer = layer_stack(model).layers[1]
    # Position 0 alone is singled out by its position embedding; the MLP of layer 1 then writes a huge state there.
    model.transformer.wpe.weight[0] = 30.0 * torch.sign(torch.randn(32, generator=torch.Generator().manual_seed(0)))
    direction = model.transformer.wpe.weight[0] / model.transformer.wpe.weight[0].norm()
    layer.mlp.c_fc.weight.zero_()
    layer.mlp.c_fc.bias.fill_(-20.0)
    layer.mlp.c_fc.weight[:, 0] = 10.0 * direction
    layer.mlp.c_proj.weight[0] = 100.0
    measured = measure_distances(handle_of(model), token_set())
    assert measured.norms.sink_layers == (1,)
    assert measured.sink_layers_in(Block(start=0, n=2)) == (1,)
    assert measured.sink_layers_in(Block(start=2, n=2)) == ()


def plain_distance(start, end):
    return (end - start).norm(dim=-1)


def test_a_plain_callable_and_a_file_of_ones_own_are_criteria_too(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def score(start, end):\n    return (end - start).norm(dim=-1)\n")
    handle, tokens = tiny_handle("llama"), token_set()
    measured = measure_distances(handle, tokens, criteria=[plain_distance, str(file)])
    assert list(measured.criteria) == ["plain_distance", "mine"]
    one, other = (grid.mean for grid in measured.criteria.values())
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", "neither a CRITERION nor a function score"),
        ("def score(:\n", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_criterion_is_refused(tmp_path, content, message):
    file = tmp_path / "mine.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ShortvizError, match=message):
        measure_distances(tiny_handle("llama"), token_set(), criteria=[str(file)])
