"""Suffix replay on the real demo model against `evaluate` of really pruned models (all: benchmarks/loss_map.py)."""

import pytest

from shortviz.measure.loss_map import ReplayEngine, open_engine
from shortviz.measure.losses import BaseScores, evaluate
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.progress import NO_WATCH
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TextSpec, WindowSpec
from shortviz.text.tokens import make_windows

pytestmark = pytest.mark.demo
BLOCKS = [Block(start=0, n=1), Block(start=11, n=8), Block(start=25, n=1), Block(start=28, n=2), Block(start=1, n=28)]


def test_replayed_losses_equal_the_pruned_models(demo_handle: ModelHandle) -> None:
    text = TextSpec(kind="builtin", value="passages/prose")
    windows = make_windows(text, WindowSpec(window=80, windows=1), demo_handle.tokenizer)
    engine = open_engine(demo_handle, windows.tokens[0])
    assert isinstance(engine, ReplayEngine)
    assert engine.replay.stacked
    measured = engine.open(windows.tokens[0]).losses(BLOCKS, NO_WATCH)
    base = BaseScores(demo_handle)
    for block, (nll, kl) in zip(measured[0], measured[1].T, strict=True):
        pruned = prune(demo_handle, PrunePlan.of_blocks(30, block))
        expected = evaluate(pruned, windows, base=demo_handle, base_scores=base)
        assert nll == pytest.approx(expected.score.nll, abs=1e-5), block
        assert kl == pytest.approx(expected.kl, abs=2e-5), block
