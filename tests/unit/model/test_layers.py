"""The layer stack, names in a state dict, and which models and blocks are refused, with the text of the refusal."""

import time
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from shortviz.errors import ModelError, PlanError
from shortviz.model.layers import (
    illegal_blocks,
    illegal_reason,
    layer_stack,
    num_layers,
    pruned_config,
    refuse_unsupported,
    rename_state,
)
from shortviz.model.load import model_info
from shortviz.model.prune import prune
from shortviz.records.plan import PrunePlan
from tests.support.bypass import verify_prune
from tests.support.families import FAMILIES, NUM_LAYERS, build_tiny, handle_of, shared_handle, tiny_config, tiny_tokens


def config(kind: str, **fields: Any) -> PreTrainedConfig:
    return CONFIG_MAPPING[kind](**fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layer_stack_of_every_family_is_found(family: str) -> None:
    model = shared_handle(family).model

    stack = layer_stack(model)

    assert len(stack.layers) == NUM_LAYERS
    assert model.get_submodule(stack.path) is stack.layers
    assert any(child is stack.layers for child in stack.decoder.children())
    assert all(head is not model.get_output_embeddings() for head in stack.decoder.modules())


def test_the_layers_of_one_layer_are_found_beside_its_experts() -> None:
    pruned = prune(shared_handle("mixtral"), PrunePlan(num_layers=6, removed=(0, 1, 2, 3, 4)))
    assert layer_stack(pruned.model).path == "model.layers"


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    model = build_tiny("llama")
    model.model.layers = nn.ModuleList(list(model.model.layers)[:4])
    with pytest.raises(ModelError, match="LlamaForCausalLM has no list of 6 layers"):
        layer_stack(model)


def test_two_lists_of_layers_are_refused_as_ambiguous() -> None:
    model = build_tiny("llama")
    model.model.adapters = nn.ModuleList(nn.Sequential(nn.Identity()) for _ in range(6))
    with pytest.raises(ModelError, match="LlamaForCausalLM has 2 lists of 6 modules"):
        layer_stack(model)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("bert", {}, "bert is an encoder-only model; choose a causal"),
        ("t5", {}, "t5 is an encoder-decoder model; choose a causal"),
        ("bart", {}, "bart is an encoder-decoder model"),
        ("vit", {}, r"vit \(model type 'vit'\) is not a causal language model"),
        ("llava", {}, r"llava \(model type 'llava'\) is not a causal language model"),
        ("llama", {"num_hidden_layers": 1}, "llama has 1 layer; choose a model of at least 2"),
        ("blt", {}, "The config of model type 'blt' states no number of layers"),
    ],
)
def test_models_that_are_not_causal_language_models_are_refused(
    kind: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        refuse_unsupported(config(kind, **fields))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_the_list_is_accepted_and_all_its_blocks_are_legal(family: str) -> None:
    refuse_unsupported(tiny_config(family))
    if family in ("gemma3n_text", "gemma4_text"):  # some layers read the keys and values of others
        illegal = illegal_blocks(tiny_config(family))
        assert 0 < len(illegal) < NUM_LAYERS * (NUM_LAYERS + 1) // 2
        assert all("num_kv_shared_layers" in reason or "must end with" in reason for *_, reason in illegal)
        return
    # lfm2's cache counts tokens in its attention layers, 2, 4 and 5.
    expected = [(2, 4), (1, 5), (0, 6)] if family == "lfm2" else []
    assert [(s, n) for s, n, _ in illegal_blocks(tiny_config(family))] == [b for b in expected if b[1] < NUM_LAYERS]


def test_names_are_renumbered_and_names_outside_the_layers_stay() -> None:
    names = ["model.embed.weight", "model.layers.0.a", "model.layers.1.a", "model.layers.10.b.c", "model.layers_norm.w"]

    renamed = rename_state(names, PrunePlan(num_layers=11, removed=(0, 2, 3)), "model.layers")

    assert renamed == {
        "model.embed.weight": "model.embed.weight",
        "model.layers.0.a": "model.layers.1.a",
        "model.layers.7.b.c": "model.layers.10.b.c",
        "model.layers_norm.w": "model.layers_norm.w",
    }


def test_the_illegal_blocks_of_a_model_of_126_layers_are_found_in_a_second() -> None:
    deep = config("jamba", num_hidden_layers=126)

    started = time.process_time()
    illegal = illegal_blocks(deep)
    seconds = time.process_time() - started

    assert seconds < 1.0
    assert (0, 8) not in {(s, n) for s, n, _ in illegal}
    assert (3, 1) in {(s, n) for s, n, _ in illegal}
    assert all(n < 126 for _, n, _ in illegal)
    assert illegal_blocks(config("llama", num_hidden_layers=126)) == ()


@pytest.mark.parametrize("kind", ["jamba", "ernie4_5_moe", "glm_moe_dsa", "gemma4_unified_text", "qwen3_next"])
def test_illegal_blocks_are_exactly_those_that_pruned_config_refuses(kind: str) -> None:
    fields: dict[str, Any] = {
        "ernie4_5_moe": {"moe_layer_interval": 2},
        "glm_moe_dsa": {"indexer_types": ["full", "shared", "full"] * 3},
    }
    small = config(kind, num_hidden_layers=9, **fields.get(kind, {}))
    illegal = {(start, n): reason for start, n, reason in illegal_blocks(small)}
    for n in range(1, 9):
        for start in range(9 - n + 1):
            plan = PrunePlan(num_layers=9, removed=tuple(range(start, start + n)))
            if (start, n) in illegal:
                assert illegal_reason(small, plan.removed) == illegal[start, n]
                with pytest.raises(PlanError) as caught:
                    pruned_config(small, plan)
                assert str(caught.value) == illegal[start, n]
            else:
                assert num_layers(pruned_config(small, plan)) == 9 - n
    assert 0 < len(illegal) < 44


def test_the_text_part_of_a_composite_config_is_written_back() -> None:
    whole = config("gemma3", text_config={"num_hidden_layers": 8})
    kinds = whole.text_config.layer_types

    pruned = pruned_config(whole, PrunePlan(num_layers=8, removed=(0, 6)))

    assert pruned.text_config.num_hidden_layers == 6
    assert pruned.text_config.layer_types == [kinds[i] for i in (1, 2, 3, 4, 5, 7)]
    assert pruned.vision_config.to_dict() == whole.vision_config.to_dict()
    assert whole.text_config.num_hidden_layers == 8


def test_a_vision_language_model_with_equally_deep_towers_is_pruned_in_its_text_part() -> None:
    text = tiny_config("gemma3_text").to_dict()
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    whole = config("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = AutoModelForImageTextToText.from_config(whole).eval()
    handle = handle_of(model)

    pruned = prune(handle, PrunePlan(num_layers=6, removed=(1, 2)))

    assert layer_stack(model).path == "model.language_model.layers"
    assert len(pruned.model.model.vision_tower.encoder.layers) == 6
    assert verify_prune(handle, pruned, tiny_tokens(12).numpy()) == 0.0


def test_each_rope_base_keeps_its_rotary_module() -> None:
    thetas = [10.0, 10000.0, 0, 1e5, 1e3, 1e4]
    fields = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 2)
    fields |= {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6}
    model = AutoModelForCausalLM.from_config(config("granite_swa", layer_rope_theta=thetas, **fields)).eval()
    handle = handle_of(model)

    pruned = prune(handle, PrunePlan(num_layers=6, removed=(0, 3)))

    assert len(model.model.rotary_embs) == 4
    assert len(pruned.model.model.rotary_embs) == 2
    assert verify_prune(handle, pruned, tiny_tokens(12).numpy()) == 0.0


def test_model_info_counts_tied_weights_once_and_measures_the_cache_of_each_layer() -> None:
    model = build_tiny("lfm2", torch.bfloat16)

    info = model_info(model, id="x", revision="abc", reason="because")

    assert model.config.tie_word_embeddings
    assert info.bytes == 2 * info.parameters == 2 * model.num_parameters()
    # Keys and values of one head of 16 channels in bfloat16; a convolution keeps a state of fixed size.
    assert info.layer_cache_bytes == (0, 0, 64, 0, 64, 64)
    assert sum(info.layer_parameters) + 260 * 32 + 32 == info.parameters
    assert (info.id, info.revision, info.reason, info.dtype, info.device) == ("x", "abc", "because", "bfloat16", "cpu")
    assert (info.hidden_size, info.vocab_size, info.context_length) == (32, 260, 512)
    assert info.illegal_reason is not None
