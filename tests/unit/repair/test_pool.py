"""Pooled neurons: those of the removed layers come into the layer before the seam where they write more."""

from pathlib import Path

import pytest
import torch

from shortviz.model.delta import load_treated, save_treated
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack
from shortviz.model.prune import prune, put_weights, shared_copy
from shortviz.records.plan import PrunePlan
from shortviz.repair.batches import open_paired_batch
from shortviz.repair.fit import FitTarget
from shortviz.repair.neurons import Neurons, as_read_by, find_neurons
from shortviz.repair.pool import choose
from shortviz.repair.probe import find_writers, open_probe
from shortviz.repair.repair import repair
from tests.support.families import NUM_LAYERS, shared_handle, tiny_tokens
from tests.support.repairs import written_by

LIVE = 12
"""Of the 48 neurons of each MLP."""


def model_of_two_halves(family: str) -> ModelHandle:
    """A model with `LIVE` neurons in layer 1, and whose layer 2 is another `LIVE` neurons and nothing else.

    Without layer 2, layer 1 can do the work of both, if it takes over the live neurons of layer 2.
    """
    base = shared_copy(shared_handle(family))
    layers = layer_stack(base.model).layers
    for index in (1, 2):
        columns = layers[index].mlp.down_proj.weight.clone()
        columns[:, LIVE:] = 0
        put_weights(layers[index], {"mlp.down_proj.weight": 3 * columns})
    put_weights(layers[1], {"mlp.down_proj.weight": 0.01 * layers[1].mlp.down_proj.weight})
    put_weights(layers[2], {"self_attn.o_proj.weight": torch.zeros_like(layers[2].self_attn.o_proj.weight)})
    return base


def logits(handle: ModelHandle) -> torch.Tensor:
    with torch.no_grad():
        return handle.model(input_ids=tiny_tokens(20), use_cache=False).logits


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_layer_before_the_seam_takes_over_the_neurons_that_write(family: str, tmp_path: Path) -> None:
    base = model_of_two_halves(family)
    cut = prune(base, PrunePlan(num_layers=NUM_LAYERS, removed=(2,)))

    repaired = repair(cut, base, written_by(base, rows=24))

    assert repaired.applied
    assert f"{LIVE} of the 48 neurons of layer 1 are now those of removed layers." in repaired.treatment.note
    assert "1.mlp.gate_proj.weight" in str(repaired.treatment.settings["weights"])
    expected, before, after = (logits(handle) for handle in (base, cut, repaired.handle))
    assert (after - expected).abs().mean() < 0.1 * (before - expected).abs().mean()
    ours = layer_stack(repaired.handle.model).layers[1].mlp
    theirs = layer_stack(base.model).layers[1].mlp
    same = [torch.equal(a, b) for a, b in zip(ours.gate_proj.weight, theirs.gate_proj.weight, strict=True)]
    assert all(same[:LIVE])  # live neurons stay in their places
    assert same.count(False) == LIVE
    save_treated(tmp_path / "kept", repaired.handle, base, {})
    again = load_treated(tmp_path / "kept", base)
    assert again is not None
    kept = dict(again[0].model.named_parameters())
    assert all(torch.equal(weight, kept[name]) for name, weight in repaired.handle.model.named_parameters())
    assert not any(weight.is_inference() for weight in repaired.handle.model.parameters())


def test_neurons_that_came_with_a_repair_before_are_not_taken_over_again() -> None:
    base = model_of_two_halves("llama")
    cut, text = prune(base, PrunePlan(num_layers=NUM_LAYERS, removed=(2,))), written_by(base, rows=24)
    once = repair(cut, base, text)
    layer = layer_stack(once.handle.model).layers[1]
    target = FitTarget(
        layer=1,
        boundary=3,
        writer=find_writers(open_probe(once.handle, 1))[0],
        reads="inputs",
        neurons=find_neurons(open_probe(once.handle, 1), find_writers(open_probe(once.handle, 1))[0]),
    )
    batches = [open_paired_batch(base, text.rows[:8], {3}, 1, 4)]
    removed, told = [layer_stack(base.model).layers[2]], []

    again = choose(layer, removed, target, batches, 1, told.append)
    first = choose(layer_stack(cut.model).layers[1], removed, target, batches, 1, told.append)

    assert again is None
    assert first is not None
    assert first[1] == LIVE
    assert told == [8, 8, 8, 8]  # the layer as it is and with the removed one's neurons, twice


def test_a_norm_that_silences_a_channel_or_a_layer_of_another_kind_gives_no_neurons() -> None:
    base = shared_copy(shared_handle("llama"))
    layers = layer_stack(base.model).layers
    neurons = find_neurons(open_probe(base, 1), find_writers(open_probe(base, 1))[0])
    assert neurons == Neurons(
        norm="post_attention_layernorm",
        inward=("mlp.gate_proj", "mlp.up_proj"),
        between=("mlp.act_fn",),
        outward="mlp.down_proj",
    )
    assert as_read_by(layers[1], layers[2], neurons) is not None
    other = layer_stack(shared_handle("mistral").model).layers[2]

    assert as_read_by(layers[1], other, neurons) is None
    silent = layers[1].post_attention_layernorm.weight.clone()
    silent[3] = 0
    put_weights(layers[1], {"post_attention_layernorm.weight": silent})
    assert as_read_by(layers[1], layers[2], neurons) is None
    put_weights(layers[2], {"post_attention_layernorm.weight": silent})
    moved = as_read_by(layers[1], layers[2], neurons)
    assert moved is not None, "what both silence is no obstacle"
    assert not moved["mlp.gate_proj.weight"][:, 3].any()
    put_weights(layers[1], {"post_attention_layernorm.weight": silent + 1})
    layers[1].mlp.act_fn = torch.nn.GELU()
    assert as_read_by(layers[1], layers[2], neurons) is None, "another activation"
