"""What only a GPU can show. With `SHORTVIZ_TEST_DEVICE=cuda` the contract tests run on one too."""

import importlib.util
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from shortviz import criteria as known
from shortviz.criteria import info
from shortviz.heal.heal import heal
from shortviz.measure.distances import measure_distances
from shortviz.measure.gram import BoundaryStates, sequence_scores
from shortviz.measure.losses import evaluate
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack, residual_boundaries
from shortviz.model.prune import prune
from shortviz.records.plan import PrunePlan
from shortviz.records.text import TextInfo, TokenSet
from tests.support.families import build_tiny, handle_of
from tests.support.healing import small_recipe, small_text

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def half() -> ModelHandle:
    return handle_of(build_tiny("llama", torch.bfloat16).to("cuda"))


def rows(count: int, length: int) -> TokenSet:
    draw = np.random.default_rng(0)
    made = tuple(draw.integers(0, 256, length) for _ in range(count))
    return TokenSet(rows=made, info=TextInfo(source="r", rows=count, tokens=count * length, fingerprint="r"))


def waits_in(work: Callable[[], object]) -> int:
    """Return how often the program waits for the GPU meanwhile, as torch counts it."""
    with warnings.catch_warnings(record=True) as seen, torch.inference_mode():
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in seen)


@pytest.mark.parametrize("lengths", [[64] * 8, [64, 64, 50, 49, 33, 20, 7, 2]], ids=["equal", "padded"])
def test_hooks_never_wait_for_the_gpu_and_scores_wait_as_often_whatever_the_number_of_chunks(
    half, monkeypatch, lengths
):
    states = BoundaryStates(half.info.num_layers + 1)
    fast = [info(name) for name in known.names() if not info(name).from_sample]
    ids = torch.arange(8 * 64, device="cuda").reshape(8, 64) % 256
    with residual_boundaries(half, states.keep) as decoder:
        waits_in(lambda: decoder(input_ids=ids, use_cache=False))  # the first pass makes buffers
        hooked = waits_in(lambda: decoder(input_ids=ids, use_cache=False))
    bare = waits_in(lambda: layer_stack(half.model).decoder(input_ids=ids, use_cache=False))
    assert hooked == bare
    waits = []
    for chunk in (2**30, 64 * states.of_tokens(torch.arange(1)).nbytes):
        monkeypatch.setattr("shortviz.measure.gram.GPU_CHUNK_BYTES", chunk)
        waits.append(waits_in(lambda: sequence_scores(states, lengths, 64, fast)))
    print(f"waits: {bare} of the pass, {waits} of the scores")
    assert 0 < waits[1] <= waits[0]


def test_distances_in_bfloat16_are_those_of_the_same_states_in_float64(half):
    tokens = rows(5, 40)
    found = measure_distances(half, tokens, batch_size=2)
    seen: list[torch.Tensor] = []
    with torch.inference_mode(), residual_boundaries(half, lambda _, x: seen.append(x.double().cpu())) as decoder:
        for row in tokens.rows:
            decoder(input_ids=torch.tensor(row, device="cuda")[None], use_cache=False)
    last = torch.stack(seen).reshape(5, half.info.num_layers + 1, 40, -1)[:, :, -1]
    unit = last / last.norm(dim=-1, keepdim=True)
    for n in (1, 3):
        a, b = unit[:, :-n], unit[:, n:]
        angle = 2 / np.pi * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1)).mean(0)
        # A batch of two rounds some states of bfloat16 the other way.
        np.testing.assert_allclose(found.criteria["angular_last"].row(n), angle.numpy(), atol=2e-3)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install .[qlora]")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_held_in_four_bits_are_healed_and_what_is_kept_was_never_quantised(dtype):
    base = handle_of(build_tiny("llama", dtype).to("cuda"))
    cut = prune(base, PrunePlan(num_layers=6, removed=(2, 3)))
    tokens, heldout = small_text(base)
    before = {name: weight.clone() for name, weight in cut.model.state_dict().items()}
    recipe = small_recipe(objective="next_token", quantize="4bit", steps=8, learning_rate=1e-2)
    healed = heal(cut, tokens, recipe, base=base, heldout=heldout)
    assert healed.history.best_step > 0
    assert evaluate(healed.handle, heldout).score.nll < evaluate(cut, heldout).score.nll
    assert all(torch.equal(weight, before[name]) for name, weight in cut.model.state_dict().items())
    assert {weight.dtype for weight in healed.handle.model.parameters()} == {dtype}
