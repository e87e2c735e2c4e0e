"""Every rule for a config field, and the drift test that finds fields which an upgrade of transformers adds."""

from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from shortviz.errors import ModelError, PlanError
from shortviz.model.config import unknown_fields
from shortviz.model.layers import illegal_reason, num_layers, pruned_config, refuse_unsupported, text_config
from shortviz.model.rules import Cut, kv_sources
from shortviz.records.plan import PrunePlan

NEVER_CUT = {
    *("hrm_text", "inkling2_text", "longcat_flash", "rwkv", "zamba", "zamba2", "zaya"),
}
"""Causal language models that are refused whatever the plan."""
LAYER_KINDS = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers")


def cut(kind: str, removed: tuple[int, ...], **fields: Any) -> PreTrainedConfig:
    before = CONFIG_MAPPING[kind](**fields)
    return text_config(pruned_config(before, PrunePlan(num_layers=num_layers(before), removed=removed)))


def refusal(kind: str, removed: tuple[int, ...], **fields: Any) -> str:
    with pytest.raises(PlanError) as caught:
        cut(kind, removed, **fields)
    return str(caught.value)


def test_lists_of_length_l_are_sliced() -> None:
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    pruned = cut("qwen3", (0, 1), num_hidden_layers=4, layer_types=kinds)
    assert (pruned.num_hidden_layers, pruned.layer_types) == (2, ["full_attention", "sliding_attention"])
    assert cut("smollm3", (1,), num_hidden_layers=3, no_rope_layers=[1, 0, 1]).no_rope_layers == [1, 1]


def test_lists_of_layer_numbers_are_renumbered_even_where_they_have_length_l() -> None:
    pruned = cut("llama4_text", (1,), num_hidden_layers=4, moe_layers=[0, 1, 2, 3])
    assert pruned.moe_layers == [0, 1, 2]
    assert cut("llama4_text", (0, 2), num_hidden_layers=4, moe_layers=[1, 2, 3]).moe_layers == [0, 1]
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    lfm2 = cut("lfm2", (0,), num_hidden_layers=4, layer_types=kinds, full_attn_idxs=[1, 3])
    assert (lfm2.full_attn_idxs, lfm2.layer_types) == ([0, 2], kinds[1:])
    assert cut("bamba", (0,), num_hidden_layers=4, attn_layer_indices=[1, 3]).attn_layer_indices == [0, 2]


def test_keys_of_a_mapping_by_layer_are_renumbered() -> None:
    kinds = ["sliding_attention", "full_attention"] * 3
    fields = {"num_hidden_layers": 6, "layer_types": kinds}
    before = CONFIG_MAPPING["gemma4_unified_text"](**fields).to_dict()["per_layer_config"]
    after = cut("gemma4_unified_text", (0, 2), **fields).to_dict()["per_layer_config"]
    assert [int(key) for key in before] == [1, 3, 5]
    assert [int(key) for key in after] == [0, 1, 3]
    assert list(after.values()) == list(before.values())


def test_prefix_counts_are_lowered_by_what_was_removed_inside() -> None:
    assert cut("deepseek_v3", (1, 5), num_hidden_layers=8, first_k_dense_replace=3).first_k_dense_replace == 2
    assert cut("afmoe", (4,), num_hidden_layers=8, num_dense_layers=2).num_dense_layers == 2


def test_prediction_heads_are_dropped_since_the_checkpoint_has_none() -> None:
    assert cut("deepseek_v3", (1,), num_hidden_layers=8).num_nextn_predict_layers == 0


def test_a_sparse_step_is_written_out_as_the_list_of_dense_layers() -> None:
    pruned = cut("qwen3_moe", (0, 3), num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[5])
    # Dense were 0, 2, 4 (odd numbers of layers from 1) and 5; of 1, 2, 4, 5 these are now 1, 2, 3.
    assert (pruned.decoder_sparse_step, pruned.mlp_only_layers) == (1, [1, 2, 3])


def test_a_cycle_of_block_types_is_written_out() -> None:
    cycle = ["recurrent", "recurrent", "attention"]
    assert cut("recurrent_gemma", (1,), num_hidden_layers=5, block_types=cycle).layers_block_type == [
        *("linear_attention", "sliding_attention", "linear_attention", "linear_attention")
    ]


def test_gpt_neo_attention_types_are_written_out() -> None:
    pruned = cut("gpt_neo", (1,), num_layers=4, attention_types=[[["global", "local"], 2]])
    assert pruned.attention_layers == ["global", "global", "local"]


def test_the_residual_scale_of_minicpm3_is_kept() -> None:
    before = CONFIG_MAPPING["minicpm3"](num_hidden_layers=8)
    after = cut("minicpm3", (3, 4), num_hidden_layers=8)
    assert after.scale_depth / after.num_hidden_layers**0.5 == pytest.approx(before.scale_depth / 8**0.5, rel=1e-15)


def test_jamba_is_cut_where_its_rhythm_can_be_kept_by_another_offset() -> None:
    fields = {"num_hidden_layers": 16, "attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2}
    before = CONFIG_MAPPING["jamba"](**fields)
    after = cut("jamba", (0,), **fields)
    assert (after.attn_layer_offset, after.expert_layer_offset) == (1, 0)
    assert after.layers_block_type == before.layers_block_type[1:]
    assert after.layers_num_experts == before.layers_num_experts[1:]
    assert "config field attn_layer_period repeats every 4 layers" in refusal("jamba", (4, 5), **fields)
    assert "config field expert_layer_period repeats every 2" in refusal("jamba", (13,), num_hidden_layers=16)


def test_ernie_is_cut_where_its_interval_can_be_kept() -> None:
    fields = {"num_hidden_layers": 8, "moe_layer_start_index": 2, "moe_layer_end_index": 6}
    pruned = cut("ernie4_5_moe", (0, 4), **fields)
    assert (pruned.moe_layer_start_index, pruned.moe_layer_end_index) == (1, 4)
    assert "moe_layer_interval makes every 2th" in refusal("ernie4_5_moe", (3,), moe_layer_interval=2, **fields)


def test_layers_whose_results_others_reuse_must_stay() -> None:
    kinds = ["full", "shared", "full", "shared"]
    fields = {"num_hidden_layers": 4, "indexer_types": kinds}
    assert cut("glm_moe_dsa", (1,), **fields).indexer_types == ["full", "full", "shared"]
    assert cut("glm_moe_dsa", (0, 1), **fields).indexer_types == ["full", "shared"]
    assert "indexer_types makes layer 1 reuse what layer 0 computes" in refusal("glm_moe_dsa", (0,), **fields)
    types = ["sliding_attention", "full_attention"] * 4
    shared = {"num_hidden_layers": 8, "num_kv_shared_layers": 2, "layer_types": types}
    assert cut("gemma4_unified_text", (0, 6), **shared).num_kv_shared_layers == 1
    assert "makes layer 6 read the keys and values of layer 4" in refusal("gemma4_unified_text", (4,), **shared)


def test_where_a_layers_number_enters_its_computation_only_the_last_layers_can_go() -> None:
    fields = {"n_layer": 4, "scale_attn_by_inverse_layer_idx": True}
    assert cut("gpt2", (2, 3), **fields).n_layer == 2
    message = refusal("gpt2", (0,), **fields)
    assert (
        "config field scale_attn_by_inverse_layer_idx makes the attention scale depend on a layer's number" in message
    )
    assert "lambda_init" in refusal("diffllama", (1,), num_hidden_layers=4)
    assert cut("gpt2", (0,), n_layer=4).n_layer == 3


def test_the_last_layer_must_stay_of_the_kind_that_the_config_class_forces() -> None:
    types = ["sliding_attention", "full_attention"] * 2
    message = refusal("gemma4_unified_text", (3,), num_hidden_layers=4, layer_types=types)
    assert message == (
        "These layers cannot be removed: config field layer_types must end with full_attention; "
        "choose other layers, or fewer of them."
    )


def test_a_quantised_model_is_refused() -> None:
    config = CONFIG_MAPPING["llama"](num_hidden_layers=4)
    config.quantization_config = {"quant_method": "awq"}
    with pytest.raises(PlanError, match="quantization_config describes quantised weights layer by layer"):
        pruned_config(config, PrunePlan(num_layers=4, removed=(1,)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window_per_layer", [1, 2, 3, 4]),
        ("gated_layer_ids", [2]),
        ("num_gated_layers", 2),
        ("gate_interval", 2),
        ("settings", {"0": {"gate": True}}),
    ],
)
def test_a_field_that_looks_per_layer_and_is_not_known_is_refused(field: str, value: Any) -> None:
    message = refusal("llama", (1,), num_hidden_layers=4, **{field: value})
    assert f"config field {field} is not known to this version and may hold per-layer data" in message


def causal_configs() -> list[tuple[str, PreTrainedConfig]]:
    """Return the default config of every causal language model that transformers has."""
    configs = []
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[kind]()
        except StrictDataclassError:  # its own defaults do not pass its own check
            continue
        try:
            refuse_unsupported(config)
        except ModelError:
            continue
        configs.append((kind, config))
    return configs


def test_no_installed_config_has_a_per_layer_field_that_the_table_does_not_know() -> None:
    unknown = {
        kind: fields
        for kind, config in causal_configs()
        if (fields := unknown_fields(text_config(config).to_dict(), num_layers(config)))
    }
    assert unknown == {}


def test_every_installed_config_describes_exactly_the_kept_layers_or_is_refused_with_notice() -> None:
    never = set()
    for kind, config in causal_configs():
        count = num_layers(config)
        plans = [(0,), (1,), (count - 1,), (1, 2), tuple(range(1, count - 1, 2))]
        plans = [plan for plan in plans if len(plan) < count]
        refused = [plan for plan in plans if illegal_reason(config, plan)]
        for removed in set(plans) - set(refused):
            plan = PrunePlan(num_layers=count, removed=removed)
            pruned = pruned_config(config, plan)
            again = text_config(type(pruned).from_dict(pruned.to_dict()))
            assert again.num_hidden_layers == len(plan.kept), kind
            for field in LAYER_KINDS:
                if (before := getattr(text_config(config), field, None)) is not None:
                    assert list(getattr(again, field)) == [before[i] for i in plan.kept], (kind, field, removed)
        if len(refused) == len(plans):
            never.add(kind)
    assert never == NEVER_CUT


def test_the_layers_that_others_read_keys_and_values_from_are_renumbered() -> None:
    sources = [None, None, 0, 1]
    cut_two = Cut(fields={}, num_layers=4, kept=(0, 2, 3))
    with pytest.raises(PlanError, match="kv_source_layers makes layer 3 reuse what layer 1 computes"):
        kv_sources(cut_two, "kv_source_layers", sources)
    cut_one = Cut(fields={}, num_layers=4, kept=(1, 3))
    assert kv_sources(cut_one, "kv_source_layers", sources) == [None, 0]
