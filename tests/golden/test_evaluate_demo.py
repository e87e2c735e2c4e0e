"""evaluate on the real demo model, against an independent float64 computation from its full logits."""

import pytest
import torch

from shortviz.measure.losses import evaluate
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TextSpec, WindowSpec
from shortviz.text.tokens import make_windows

pytestmark = pytest.mark.demo


def test_loss_and_divergence_of_a_cut_equal_float64(demo_handle: ModelHandle) -> None:
    text = TextSpec(kind="builtin", value="passages/prose")
    windows = make_windows(text, WindowSpec(window=96, windows=2), demo_handle.tokenizer)
    pruned = prune(demo_handle, PrunePlan.of_blocks(30, Block(start=20, n=3)))
    result = evaluate(pruned, windows, base=demo_handle)
    tokens = torch.tensor(windows.tokens)
    with torch.inference_mode():
        before, after = (
            h.model(input_ids=tokens, use_cache=False).logits[:, :-1].double().log_softmax(-1).flatten(0, 1)
            for h in (demo_handle, pruned)
        )
    target = tokens[:, 1:].flatten()[:, None]
    assert result.base is not None
    assert result.score.nll == pytest.approx(-float(after.gather(1, target).mean()), abs=1e-5)
    assert result.base.nll == pytest.approx(-float(before.gather(1, target).mean()), abs=1e-5)
    assert result.kl == pytest.approx(float((before.exp() * (before - after)).sum(1).mean()), abs=1e-5)
    assert result.score.nll > result.base.nll
