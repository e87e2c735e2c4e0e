"""Neurons of one layer in another's place, for every family: the features are those that their own layer would have."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shortviz.measure.replay import record
from shortviz.model.layers import layer_stack
from shortviz.model.prune import put_weights, shared_copy
from shortviz.repair.neurons import as_read_by, find_neurons
from shortviz.repair.probe import find_writers, open_probe
from tests.support.families import FAMILIES, build_tiny, handle_of, shared_handle, tiny_config, tiny_handle, tiny_tokens

LAYER, DONOR = 1, 3
MOVABLE = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2", "gpt_neox", "opt", "phi", "bloom", "mpt", "smollm3"),
    *("granite", "cohere", "cohere2", "starcoder2", "lfm2", "ernie4_5", "hunyuan_v1_dense", "falcon_h1", "seed_oss"),
    *("arcee", "xglm", "biogpt", "phi3", "olmo"),
)
"""Families where neurons are found and moved; elsewhere they are refused (falcon, nemotron: norms with a bias before
linear layers without one; apertus: an activation trained layer by layer)."""


@contextmanager
def reading(norm: nn.Module, replaced: Tensor | None, kept: list[Tensor]) -> Iterator[None]:
    """Keep what a norm reads, and give it something else if asked."""

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        kept.append(args[0].clone())
        return None if replaced is None else (replaced, *args[1:])

    handle = norm.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_moved_neurons_give_the_features_of_their_own_layer(family: str) -> None:
    handle = shared_copy(shared_handle(family))
    layers = layer_stack(handle.model).layers
    probe = open_probe(handle, LAYER)
    writers = find_writers(probe)
    neurons = find_neurons(probe, writers[0]) if writers else None
    moved = as_read_by(layers[LAYER], layers[DONOR], neurons) if neurons else None
    assert (moved is not None) == (family in MOVABLE)
    if neurons is None or moved is None:
        return
    recording = record(handle, torch.as_tensor(tiny_tokens(20)[0]))
    state = recording.boundaries[LAYER]
    features: list[Tensor] = []

    def run(index: int, replaced: Tensor | None) -> Tensor:
        read: list[Tensor] = []
        writer = layers[index].get_submodule(neurons.outward)
        hook = writer.register_forward_pre_hook(lambda _m, args: features.append(args[0].clone()))
        with torch.inference_mode(), reading(layers[index].get_submodule(neurons.norm), replaced, read):
            recording.calls[index].run(layers[index], state.clone())
        hook.remove()
        return read[0]

    before = {name: p.clone() for name, p in layers[DONOR].named_parameters()}
    put_weights(layers[LAYER], moved)
    read = run(LAYER, None)
    run(DONOR, read)

    ours, theirs = features
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    assert all(torch.equal(p, before[name]) for name, p in layers[DONOR].named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_the_same_writers_and_neurons_are_found_and_moved_as_exactly(family: str) -> None:
    """The default on GPUs. A norm behind the MLP, and biases of norms, are hidden by the rounding of the outputs."""
    wide, narrow = shared_handle(family), tiny_handle(family, torch.bfloat16)

    writers = find_writers(open_probe(narrow, LAYER))

    assert [(w.name, w.scale) for w in writers] == [(w.name, w.scale) for w in find_writers(open_probe(wide, LAYER))]
    neurons = find_neurons(open_probe(narrow, LAYER), writers[0]) if writers else None
    assert neurons == (find_neurons(open_probe(wide, LAYER), writers[0]) if writers else None)
    ours, theirs = (copy.deepcopy(layer_stack(narrow.model).layers[i]).float() for i in (LAYER, DONOR))
    moved = as_read_by(*(layer_stack(narrow.model).layers[i] for i in (LAYER, DONOR)), neurons) if neurons else None
    assert (moved is not None) == (family in MOVABLE)
    x = torch.randn(5, wide.info.hidden_size, generator=torch.Generator().manual_seed(1)).to(wide.model.device)
    for name in neurons.inward if neurons and moved else ():
        expected = theirs.get_submodule(name)(theirs.get_submodule(neurons.norm)(x))
        read = ours.get_submodule(neurons.norm)(x)
        put_weights(ours, {key: weight for key, weight in moved.items() if key.startswith(f"{name}.")})
        torch.testing.assert_close(ours.get_submodule(name)(read), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_whose_attention_reads_rows_of_the_same_shape_beside_the_mlp_gives_no_neurons() -> None:
    config = tiny_config("phi", intermediate_size=32, num_key_value_heads=2)
    handle = handle_of(build_tiny("phi", config=config), "phi")
    writer = next(w for w in find_writers(open_probe(handle, LAYER)) if w.name == "mlp.fc2")

    assert find_neurons(open_probe(handle, LAYER), writer) is None, (
        "moved rows of q, k and v would change the attention"
    )
