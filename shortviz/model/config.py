"""Which config field follows which rule when layers are removed, and which families cannot be cut.

The table goes by field name, since a list's length cannot tell per-layer values from layer numbers (llama4 `moe_layers`
with step 1 is [0..L-1]). A field that looks as if it held per-layer data and is not in the table is refused, never
guessed; a drift test runs `unknown_fields` over every causal language model of the installed transformers.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shortviz.errors import PlanError
from shortviz.model import rules
from shortviz.model.rules import Cut, Rule

RULES: dict[str, Rule] = {
    # One entry a layer (several of these are plain numbers in most families, and then stay).
    "activation_sparsity_pattern": rules.slice_layers,
    "attention_layers": rules.slice_layers,
    "intermediate_size": rules.slice_long,
    "layer_rope_theta": rules.slice_layers,
    "layer_types": rules.slice_layers,
    "layers_block_type": rules.slice_layers,
    "mlp_layer_types": rules.slice_layers,
    "moe_intermediate_size": rules.slice_long,
    "moe_topk": rules.slice_long,
    "no_rope_layers": rules.slice_layers,
    "num_attention_heads_per_layer": rules.slice_layers,
    "num_experts": rules.slice_long,
    "num_shared_expert": rules.slice_long,
    "swiglu_limits": rules.slice_layers,
    "swiglu_limits_shared": rules.slice_layers,
    # Layer numbers.
    "attn_layer_indices": rules.renumber,
    "cross_attention_layers": rules.renumber,
    "full_attn_idxs": rules.renumber,
    "local_layer_ids": rules.renumber,
    "mlp_only_layers": rules.mlp_only,
    "moe_layers": rules.renumber,
    "per_layer_config": rules.renumber_keys,
    "rope_scaling_layers": rules.renumber,
    # Counts and rhythms that can always be written anew (an offset goes with its period, below, which may refuse).
    "attn_layer_offset": rules.offset_with("attn_layer_period"),
    "attention_types": rules.write_out_attention_types,
    "block_types": rules.write_out_cycle,
    "decoder_sparse_step": rules.dense_step,
    "expert_layer_offset": rules.offset_with("expert_layer_period"),
    "first_k_dense_replace": rules.count_prefix,
    "moe_layer_start_index": rules.moe_start,
    "num_blocks": rules.depth_again,
    "num_dense_layers": rules.count_prefix,
    "num_mtp_layers": rules.no_extra_heads,
    "num_nextn_predict_layers": rules.no_extra_heads,
    "scale_depth": rules.depth_scale,
}
"""Fields that can be rewritten for every cut."""

REFUSING_RULES: dict[str, Rule] = {
    "attn_layer_period": rules.period_with("attn_layer_offset"),
    "expert_layer_period": rules.period_with("expert_layer_offset"),
    "indexer_types": rules.indexer_types,
    "kv_source_layers": rules.kv_sources,
    "moe_layer_end_index": rules.moe_end,
    "num_kv_shared_layers": rules.kv_shared,
    "scale_attn_by_inverse_layer_idx": rules.numbers_stay("the attention scale"),
    "cross_layer_interval": rules.never("adds a cross-attention every few layers"),
    "n_layers_per_attn_res_block": rules.never("groups layers that read one another's outputs"),
    "num_mem_blocks": rules.never("shares transformer blocks between layers"),
    "ple_layer_ids": rules.never("packs the embeddings of several layers into shared tables"),
    "quantization_config": rules.never("describes quantised weights layer by layer"),
    "rescale_every": rules.never("halves weights and states every few layers, by layer number"),
}
"""Fields that cannot express every cut."""

FAMILY_RULES: dict[str, tuple[str, Rule]] = {
    "beam": ("layer_idx", rules.numbers_stay("the residual weight")),
    "diffllama": ("layer_idx", rules.numbers_stay("the differential attention weight (lambda_init)")),
    "diffusion_gemma_text": ("layer_types", rules.last_is_full),
    "embedding_gemma2": ("layer_types", rules.last_is_full),
    "gemma4_text": ("layer_types", rules.last_is_full),
    "gemma4_unified_text": ("layer_types", rules.last_is_full),
    "gpt_neox_japanese": ("layer_number", rules.end_stays(-1, "gives the last layer a bias of its own")),
    "hrm_text": ("num_layers_per_stack", rules.never("runs two stacks of layers in cycles")),
    "longcat_flash": ("num_layers", rules.never("counts layers that each hold two attentions")),
    "modernbert-decoder": ("layer_idx", rules.end_stays(0, "leaves the first layer without a norm")),
    "olmo_hybrid": ("layer_types", rules.both_kinds),
    "reformer": ("attn_layers", rules.never("describes reversible layers, which have two residual streams")),
    "zamba": ("layers_block_type", rules.never("shares one transformer block between layers")),
    "zamba2": ("hybrid_layer_ids", rules.never("shares transformer blocks between layers")),
    "zaya": ("layer_types", rules.never("does not say that each layer's router reads the one before")),
}
"""By model type of the text config: what no field says by itself."""

# Used only to derive a per-layer list that by then is written out, or about prediction heads that are not loaded.
_DERIVED = {
    *("_sliding_window_pattern", "full_attention_interval", "global_attn_every_n_layers", "interleave_moe_layer_step"),
    *("layer_group_size", "max_window_layers", "moe_layer_interval", "no_rope_layer_interval"),
    *("prefix_dense_sliding_window_pattern", "sliding_window_pattern"),
    *("mtp_layer_types", "mtp_layers_block_type", "mtp_local_layer_ids", "mtp_mlp_layer_types"),
}
# Not about decoder layers, whatever their names and values look like.
_UNRELATED = {
    *("architectures", "axial_pos_embds_dim", "axial_pos_shape", "begin_suppress_tokens", "compress_rates"),
    *("encoder_hash_byte_group_size", "encoder_layers", "eos_token_id", "id2label", "label2id", "languages"),
    *("mlp_multipliers", "num_random_blocks", "rope_parameters", "rope_scaling", "ssm_multipliers", "suppress_tokens"),
    *("time_step_limit", "vocab_size_per_layer_input", "index_local_blocks", "index_topk_blocks", "time_step_rank"),
}
_DEPTH = {"n_layer", "n_layers", "num_hidden_layers", "num_layers"}
_LIST_NAME = re.compile(r"layer|block|idx|ids$|ind(ex|ices)")
_COUNT_NAME = re.compile(
    r"^(n|num)_(\w+_)?(layers|blocks)(_|$)|layers?_(start|end|idx|index|offset|period|interval|step)|layers_per|"
    r"first_k|every|interval|nextn|_period|_step$|_pattern$|depth_scale|scale_depth|inverse_layer"
)

MACHINE_FIELDS = frozenset(
    {
        *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal"),
        *(
            "attn_implementation",
            "_flash_attn_2_enabled",
            "_experts_implementation",
            "_experts_implementation_internal",
        ),
        *("experts_implementation", "_name_or_path", "name_or_path", "_model_name_or_path", "_commit_hash"),
        *("device_map", "gguf_file", "transformers_weights"),
    }
)
"""What describes a machine or a way of loading and not a model: read nowhere, written nowhere."""

Check = Callable[[tuple[int, ...]], str | None]
"""Maps the layers kept to the reason why the cut is refused, or None."""


def without_machine_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config, and of the configs inside it, without those of a machine (MACHINE_FIELDS)."""
    return {
        name: without_machine_fields(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in MACHINE_FIELDS
    }


def rewrite(fields: Mapping[str, Any], num_layers: int, kept: tuple[int, ...]) -> dict[str, Any]:
    """Return the new values of all fields that a rule covers, for the kept layers; the depth itself is not among them.

    Only for a cut that every one of `refusal_checks` lets pass.
    """
    cut = Cut(fields=fields, num_layers=num_layers, kept=kept)
    table = RULES | REFUSING_RULES
    return {name: table[name](cut, name, value) for name, value in fields.items() if name in table}


def refusal_checks(fields: Mapping[str, Any], num_layers: int, kinds: Sequence[str]) -> list[Check]:
    """Return the checks that can refuse a cut of this config; most configs have none, and every block is legal.

    `kinds` is the type of each layer, e.g. `linear_attention`; empty where the config does not tell them apart.
    """
    entries = [(name, rule, fields[name]) for name, rule in REFUSING_RULES.items() if fields.get(name)]
    if family := FAMILY_RULES.get(fields.get("model_type", "")):
        entries.insert(0, (*family, True))
    # minimax has a cache of its own, which counts tokens without attention too.
    if len({kind in rules.WITHOUT_ATTENTION for kind in kinds}) == 2 and fields.get("model_type") != "minimax":
        entries.append(("layer_types", rules.attention_stays(kinds), True))
    unknown = rules.never("is not known to this version and may hold per-layer data")
    entries += [(name, unknown, True) for name in unknown_fields(fields, num_layers)]
    return [_check(fields, num_layers, *entry) for entry in entries]


def _check(fields: Mapping[str, Any], num_layers: int, name: str, rule: Rule, value: Any) -> Check:
    def check(kept: tuple[int, ...]) -> str | None:
        try:
            rule(Cut(fields=fields, num_layers=num_layers, kept=kept), name, value)
        except PlanError as error:
            return str(error)
        return None

    return check


def unknown_fields(fields: Mapping[str, Any], num_layers: int) -> tuple[str, ...]:
    """Return the fields that look as if they held per-layer data and that no rule covers."""
    known = RULES.keys() | REFUSING_RULES.keys() | _DERIVED | _UNRELATED | _DEPTH
    known |= {FAMILY_RULES[kind][0] for kind in [fields.get("model_type", "")] if kind in FAMILY_RULES}
    return tuple(name for name, value in fields.items() if name not in known and _per_layer(name, value, num_layers))


def _per_layer(name: str, value: Any, num_layers: int) -> bool:
    if isinstance(value, list | tuple):
        return len(value) == num_layers or bool(value and _LIST_NAME.search(name))
    if isinstance(value, dict):
        return bool(value) and all(str(key).isdigit() for key in value)
    return bool(value) and isinstance(value, int | float) and _COUNT_NAME.search(name) is not None
