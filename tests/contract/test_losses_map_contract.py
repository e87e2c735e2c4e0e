"""Every family: the measured map equals `evaluate` of the really pruned models, by replay in all but one of them."""

import numpy as np
import pytest
import torch

from shortviz.errors import PlanError
from shortviz.measure.loss_map import measure_losses
from shortviz.measure.losses import BaseScores, evaluate
from shortviz.model.layers import layer_stack
from shortviz.model.prune import prune
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TextInfo, WindowSet
from tests.support.families import FAMILIES, NUM_LAYERS, shared_handle, tiny_handle, tiny_tokens

BLOCKS = [Block(start=s, n=n) for s, n in ((0, 1), (3, 1), (4, 1), (5, 1), (2, 2), (4, 2), (0, 3), (1, 3), (1, 5))]
"""Odd and even, at both ends and in the middle."""


def windows() -> WindowSet:
    tokens = tiny_tokens(20, 2).numpy()
    return WindowSet(tokens=tokens, info=TextInfo(source="random", rows=2, tokens=40, fingerprint="random"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_block_of_the_map_equals_the_pruned_model(name: str) -> None:
    handle, text = shared_handle(name), windows()
    losses = measure_losses(handle, text)
    assert losses.replayed == (name != "gemma3n_text"), "its streams are joined before the head by code, not by modules"
    assert losses.complete
    base, compared = BaseScores(handle), 0
    for block in BLOCKS:
        try:
            pruned = prune(handle, PrunePlan.of_blocks(NUM_LAYERS, block))
        except PlanError:
            continue
        expected = evaluate(pruned, text, base=handle, base_scores=base)
        for grid, mean, error in (
            (losses.nll, expected.score.nll, expected.score.nll_stderr),
            (losses.increase, expected.nll_increase, expected.nll_increase_stderr),
            (losses.kl, expected.kl, expected.kl_stderr),
        ):
            assert grid.at(block) == pytest.approx((mean, error), abs=1e-5), block
        compared += 1
    assert compared >= 3
    assert expected.base is not None
    assert losses.base.nll == pytest.approx(expected.base.nll, abs=1e-7)
    assert np.isnan(losses.nll.mean[NUM_LAYERS - 1]).all()
    modules = [handle.model, *handle.model.modules(), *layer_stack(handle.model).layers]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


@pytest.mark.parametrize("name", ["llama", "gpt2", "cohere", "mamba"])
def test_low_precision_maps_are_close(name: str) -> None:
    handle, text = tiny_handle(name, torch.bfloat16), windows()
    losses, block = measure_losses(handle, text), Block(start=2, n=2)
    assert losses.replayed
    expected = evaluate(prune(handle, PrunePlan.of_blocks(NUM_LAYERS, block)), text)
    assert losses.nll.at(block)[0] == pytest.approx(expected.score.nll, abs=0.02)
