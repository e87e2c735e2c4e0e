"""Every family: the loss of a pruned model equals an independent, slow, float64 computation from its full logits."""

import pytest
import torch

from shortviz.measure.logits import open_head
from shortviz.measure.losses import evaluate
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.records.plan import PrunePlan
from shortviz.records.text import TextInfo, WindowSet
from tests.support.families import FAMILIES, shared_handle, tiny_tokens

PLANS = (PrunePlan(num_layers=6, removed=(2,)), PrunePlan(num_layers=6, removed=(3, 4, 5)))


def windows() -> WindowSet:
    tokens = tiny_tokens(20, 3).numpy()
    return WindowSet(tokens=tokens, info=TextInfo(source="random", rows=3, tokens=60, fingerprint="random"))


@torch.inference_mode()
def log_probabilities(handle: ModelHandle, tokens: torch.Tensor) -> torch.Tensor:
    """Of all next tokens, float64, (scored tokens of all windows, vocabulary)."""
    logits = handle.model(input_ids=tokens.to(handle.model.device), use_cache=False).logits.cpu()
    return logits[:, :-1].double().log_softmax(-1).flatten(0, 1)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(map(str, plan.removed)))
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_equals_a_float64_computation_from_full_logits(name: str, plan: PrunePlan) -> None:
    handle = shared_handle(name)
    if handle.info.illegal_reason(plan.blocks[0]):
        pytest.skip(f"{name} cannot express the cut")
    pruned = prune(handle, plan)
    result = evaluate(pruned, windows(), base=handle)
    tokens = torch.tensor(windows().tokens)
    before, after = log_probabilities(handle, tokens), log_probabilities(pruned, tokens)
    target = tokens[:, 1:].flatten()[:, None]
    assert result.base is not None
    assert result.base.nll == pytest.approx(-float(before.gather(1, target).mean()), abs=1e-5)
    assert result.score.nll == pytest.approx(-float(after.gather(1, target).mean()), abs=1e-5)
    assert result.kl == pytest.approx(float((before.exp() * (before - after)).sum(1).mean()), abs=1e-5)
    assert result.same_top1 == pytest.approx(float((before.argmax(1) == after.argmax(1)).double().mean()), abs=0.02)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_is_run_in_chunks_and_leaves_no_hook(name: str) -> None:
    handle = shared_handle(name)
    assert open_head(handle, tiny_tokens(8)[0]).split
    assert not handle.model.get_output_embeddings()._forward_pre_hooks
