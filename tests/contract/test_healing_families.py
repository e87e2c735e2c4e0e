"""Families that differ in what is trained: fused and expert weights, Conv1D, tied heads, mixers, double norms."""

import pytest
import torch

from shortviz.heal.heal import heal
from shortviz.heal.student import adapted_weights, make_student
from shortviz.measure.losses import evaluate
from shortviz.model.prune import prune
from shortviz.records.plan import PrunePlan
from tests.support.families import shared_handle, tiny_tokens
from tests.support.healing import small_recipe, small_text

CHOSEN = ("gpt2", "gemma2", "mixtral", "phi3", "opt", "falcon", "qwen2_moe", "falcon_h1", "mamba")


@pytest.mark.parametrize("method", ["lora", "partial"])
@pytest.mark.parametrize("name", CHOSEN)
def test_a_family_is_healed_and_neither_the_cut_nor_the_uncut_model_changes(name, method):
    base = shared_handle(name)
    cut = prune(base, PrunePlan(num_layers=6, removed=(3,)))
    tokens, heldout = small_text(base)
    before = {key: weight.clone() for key, weight in base.model.state_dict().items()}
    with torch.no_grad():
        expected = cut.model(input_ids=tiny_tokens().to(cut.model.device)).logits.clone()
    objective = "mixed" if method == "lora" else "distill"
    recipe = small_recipe(method=method, objective=objective, steps=4, learning_rate=1e-2, eval_every=4)
    healed = heal(cut, tokens, recipe, base=base, heldout=heldout)
    assert healed.history.best_step == 4, "four steps help a random model"
    assert evaluate(healed.handle, heldout).score.nll == pytest.approx(healed.history.best_nll, abs=1e-5)
    after = base.model.state_dict()
    assert all(torch.equal(after[key], weight) for key, weight in before.items())
    with torch.no_grad():
        assert torch.equal(cut.model(input_ids=tiny_tokens().to(cut.model.device)).logits, expected)
    assert not any(weight.requires_grad for weight in (*base.model.parameters(), *cut.model.parameters()))
    assert (healed.adapter is None) == (method == "partial")


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "qwen2_moe", "lfm2", "falcon_h1", "bloom", "minimax"])
def test_adapters_sit_on_every_mlp_and_on_no_attention(name):
    student = make_student(shared_handle(name), small_recipe())
    names = [weight for weight, _ in adapted_weights(student.handle.model)]
    assert {weight.split(".")[2] for weight in names} == set("012345"), "every layer"
    assert not [weight for weight in names if "att" in weight or "router" in weight or weight.endswith("gate.weight")]
