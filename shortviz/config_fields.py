"""What each config field that says something per layer becomes when layers are removed.

The table goes by field name, since a list's length cannot tell per-layer values from layer numbers (llama4 `moe_layers`
with step 1 is [0..L-1]). A field that looks as if it held per-layer data and is not in the table is refused, never
guessed; `unknown_fields` finds those, and a drift test runs it over every causal language model of transformers.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shortviz.errors import PlanError


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """One removal, as the rules see it."""

    fields: Mapping[str, Any]
    """The text config's fields, `config.to_dict()`."""
    num_layers: int
    kept: tuple[int, ...]
    """Ascending."""


Rule = Callable[[Cut, str, Any], Any]
"""(cut, field name, value) -> new value; raises PlanError where the stock config cannot express the cut."""


def _refuse(field: str, because: str) -> PlanError:
    return PlanError(
        f"These layers cannot be removed: config field {field} {because}; choose other layers, or fewer of them."
    )


def _slice(cut: Cut, field: str, value: Any) -> Any:
    """One entry a layer: keep the kept layers' entries."""
    if not isinstance(value, list | tuple):
        return value
    if len(value) != cut.num_layers:
        raise _refuse(field, f"has {len(value)} entries for {cut.num_layers} layers")
    return [value[i] for i in cut.kept]


def _renumber(cut: Cut, field: str, value: Any) -> Any:
    """Layer numbers: drop the removed ones, renumber the others."""
    if value is None:
        return None
    listed = set(value)
    return [new for new, old in enumerate(cut.kept) if old in listed]


def _renumber_keys(cut: Cut, field: str, value: Any) -> Any:
    """A mapping from layer number to settings; the keys stay text, zero-padded as wide as they were."""
    if not value:
        return value
    by_layer = {int(key): (key, settings) for key, settings in value.items()}
    renumbered: dict[Any, Any] = {}
    for new, old in enumerate(cut.kept):
        if old in by_layer:
            key, settings = by_layer[old]
            renumbered[str(new).zfill(len(key)) if isinstance(key, str) else new] = settings
    return renumbered


def _prefix(cut: Cut, field: str, value: Any) -> Any:
    """The first `value` layers are special: count those that stay."""
    return value if value is None else sum(1 for i in cut.kept if i < value)


def _dense_step(cut: Cut, field: str, value: Any) -> Any:
    """decoder_sparse_step: from now on `mlp_only_layers` names every dense layer, so the step is 1."""
    return 1


def _mlp_only(cut: Cut, field: str, value: Any) -> Any:
    """mlp_only_layers, with the layers that decoder_sparse_step makes dense."""
    step = cut.fields.get("decoder_sparse_step") or 1
    listed = set(value or ())
    return [new for new, old in enumerate(cut.kept) if old in listed or (old + 1) % step]


def _cycle(cut: Cut, field: str, value: Any) -> Any:
    """recurrent_gemma block_types, repeated over the layers: write the kept layers' types out."""
    return [value[i % len(value)] for i in cut.kept]


def _attention_types(cut: Cut, field: str, value: Any) -> Any:
    """gpt_neo attention_types, [[types], repeat] pairs: write the kept layers' types out as one pair."""
    types = [kind for kinds, repeat in value for _ in range(repeat) for kind in kinds]
    return [[[types[i] for i in cut.kept], 1]]


def _period(offset_field: str) -> Rule:
    def keep(cut: Cut, field: str, value: Any) -> Any:
        _shifted(cut, field, offset_field)
        return value

    return keep


def _offset(period_field: str) -> Rule:
    def shift(cut: Cut, field: str, value: Any) -> Any:
        return _shifted(cut, period_field, field)

    return shift


def _shifted(cut: Cut, period_field: str, offset_field: str) -> int:
    """Return the offset with which every kept layer stays what it was (i % period == offset), or raise PlanError."""
    period, offset = int(cut.fields[period_field]), int(cut.fields[offset_field])
    marked = [old % period == offset for old in cut.kept]
    for candidate in [offset, *range(period)]:
        if all((new % period == candidate) == mark for new, mark in enumerate(marked)):
            return candidate
    raise _refuse(period_field, f"repeats every {period} layers, and the layers that stay break that rhythm")


def _moe_bounds(cut: Cut) -> tuple[int, int]:
    """ernie4_5_moe: new (start, end) with which every kept layer stays dense or sparse, or raise PlanError."""
    start, end = cut.fields["moe_layer_start_index"], cut.fields["moe_layer_end_index"]
    interval = cut.fields.get("moe_layer_interval") or 1
    end = cut.num_layers - 1 if end in (None, -1) else end
    sparse = [(old + 1) % interval == 0 and start <= old <= end for old in cut.kept]
    new_start = sum(1 for old in cut.kept if old < start)
    new_end = sum(1 for old in cut.kept if old <= end) - 1
    if [(new + 1) % interval == 0 and new_start <= new <= new_end for new in range(len(cut.kept))] != sparse:
        raise _refuse("moe_layer_interval", f"makes every layer {interval} apart sparse, and this cut breaks that")
    return new_start, max(new_end, 0) if any(sparse) else new_end


def _moe_start(cut: Cut, field: str, value: Any) -> Any:
    return _moe_bounds(cut)[0]


def _moe_end(cut: Cut, field: str, value: Any) -> Any:
    return _moe_bounds(cut)[1]


def _producers_stay(cut: Cut, field: str, pairs: Sequence[tuple[int, int]]) -> None:
    """Refuse when a kept layer reads what a removed layer computes; pairs are (reader, producer)."""
    kept = set(cut.kept)
    for reader, producer in pairs:
        if reader in kept and producer not in kept:
            raise _refuse(field, f"makes layer {reader} reuse what layer {producer} computes, and that would go")


def _indexer_types(cut: Cut, field: str, value: Any) -> Any:
    """A `shared` layer reads the token choice of the last `full` layer before it."""
    if value is None:
        return None
    full = [i for i, kind in enumerate(value) if kind == "full"]
    pairs = [(i, max((f for f in full if f < i), default=i)) for i, kind in enumerate(value) if kind == "shared"]
    _producers_stay(cut, field, pairs)
    return _slice(cut, field, value)


def _kv_sources(cut: Cut, field: str, value: Any) -> Any:
    """Which layer's keys and values each layer reads: slice the list and renumber what it says."""
    if value is None:
        return None
    _producers_stay(cut, field, [(i, source) for i, source in enumerate(value) if source is not None])
    new = {old: i for i, old in enumerate(cut.kept)}
    return [None if value[i] is None else new[value[i]] for i in cut.kept]


def _kv_shared(cut: Cut, field: str, value: Any) -> Any:
    """The last `value` layers read keys and values of the last layer before them of the same type."""
    if not value:
        return value
    types = cut.fields["layer_types"]
    first = cut.num_layers - value
    pairs = [
        (i, max((j for j in range(first) if types[j] == types[i]), default=i)) for i in range(first, cut.num_layers)
    ]
    _producers_stay(cut, field, pairs)
    return sum(1 for i in cut.kept if i >= first)


def _numbers_stay(what: str) -> Rule:
    """The layer's own number enters its computation: only layers at the end can go."""

    def check(cut: Cut, field: str, value: Any) -> Any:
        if value and cut.kept[-1] != len(cut.kept) - 1:
            raise _refuse(field, f"makes {what} depend on a layer's number; only the last layers can go")
        return value

    return check


def _never(because: str) -> Rule:
    def refuse(cut: Cut, field: str, value: Any) -> Any:
        if value:
            raise _refuse(field, because)
        return value

    return refuse


def _depth_scale(cut: Cut, field: str, value: Any) -> Any:
    """minicpm3 scales each residual by scale_depth / sqrt(layers): keep the quotient."""
    return value * math.sqrt(len(cut.kept) / cut.num_layers)


def _no_extra_heads(cut: Cut, field: str, value: Any) -> Any:
    """Multi-token-prediction layers are not part of the causal language model that transformers loads or saves."""
    return 0 if value else value


SLICED = (
    "layer_types mlp_layer_types layers_block_type no_rope_layers layer_rope_theta intermediate_size "
    "activation_sparsity_pattern num_attention_heads_per_layer attention_layers swiglu_limits swiglu_limits_shared "
    "moe_topk num_experts moe_intermediate_size num_shared_expert"
).split()
RENUMBERED = (
    "moe_layers full_attn_idxs attn_layer_indices cross_attention_layers local_layer_ids rope_scaling_layers"
).split()
COUNTED = "first_k_dense_replace num_dense_layers".split()

RULES: dict[str, Rule] = {
    **dict.fromkeys(SLICED, _slice),
    **dict.fromkeys(RENUMBERED, _renumber),
    **dict.fromkeys(COUNTED, _prefix),
    "mlp_only_layers": _mlp_only,
    "decoder_sparse_step": _dense_step,
    "per_layer_config": _renumber_keys,
    "block_types": _cycle,
    "attention_types": _attention_types,
    "scale_depth": _depth_scale,
    "num_nextn_predict_layers": _no_extra_heads,
}
"""Fields that can always be rewritten."""

REFUSING_RULES: dict[str, Rule] = {
    "attn_layer_period": _period("attn_layer_offset"),
    "attn_layer_offset": _offset("attn_layer_period"),
    "expert_layer_period": _period("expert_layer_offset"),
    "expert_layer_offset": _offset("expert_layer_period"),
    "moe_layer_start_index": _moe_start,
    "moe_layer_end_index": _moe_end,
    "indexer_types": _indexer_types,
    "kv_source_layers": _kv_sources,
    "num_kv_shared_layers": _kv_shared,
    "scale_attn_by_inverse_layer_idx": _numbers_stay("the attention scale"),
    "n_layers_per_attn_res_block": _never("groups layers that read one another's outputs"),
    "rescale_every": _never("halves weights and states every few layers, by layer number"),
    "hidden_size_per_layer_input": _never("packs an embedding for every layer into one table"),
    "ple_layer_ids": _never("packs embeddings of several layers into shared tables"),
    "num_mem_blocks": _never("shares transformer blocks between layers"),
    "quantization_config": _never("names quantised layers by number; load the model unquantised"),
}
"""Fields that cannot express every cut."""

INERT = set(
    # Used only to derive a per-layer list that is by then written out in the config, or about prediction heads that
    # the causal language model does not have.
    "max_window_layers interleave_moe_layer_step no_rope_layer_interval sliding_window_pattern _sliding_window_pattern "
    "global_attn_every_n_layers full_attention_interval layer_group_size moe_layer_interval mtp_layer_types "
    "prefix_dense_sliding_window_pattern mtp_mlp_layer_types mtp_layers_block_type mtp_local_layer_ids num_mtp_layers "
    # Not about decoder layers at all.
    "eos_token_id begin_suppress_tokens suppress_tokens time_step_limit mlp_multipliers ssm_multipliers languages "
    "axial_pos_shape axial_pos_embds_dim encoder_hash_byte_group_size compress_rates rope_parameters rope_scaling "
    "id2label label2id architectures hidden_size_per_layer_input vocab_size_per_layer_input encoder_layers".split()
)

# Families whose layers cannot be told apart or moved, whatever the fields say.
_WHOLE_FAMILIES = {
    "zamba": ("layers_block_type", "shares one transformer block between layers"),
    "zamba2": ("hybrid_layer_ids", "shares transformer blocks between layers"),
    "reformer": ("attn_layers", "describes reversible layers with two streams, which cannot be cut one by one"),
    "hrm_text": ("num_layers_per_stack", "runs two stacks of layers in cycles"),
    "longcat_flash": ("num_layers", "counts layers that each hold two attentions"),
}
_NUMBERED_FAMILIES = {
    "diffllama": ("layer_idx (lambda_init)", "the differential attention weight"),
    "beam": ("layer_idx (attn_residual_add_idx)", "the residual weight"),
}
_LIST_NAME = re.compile(r"layer|idx|ids$|ind(ex|ices)|block")
_COUNT_NAME = re.compile(
    r"^(n|num)_(\w+_)?(layers|blocks)(_|$)|layers?_(start|end|idx|index|offset|period|interval|step)|first_k|"
    r"every_n?|_every|interval|nextn|_period|_step$|_pattern$|depth_scale|scale_depth|layers_per"
)
_DEPTH_NAMES = {"num_hidden_layers", "n_layer", "n_layers", "num_layers"}


def rewrite(fields: Mapping[str, Any], num_layers: int, kept: tuple[int, ...]) -> dict[str, Any]:
    """Return the fields that change for the kept layers, with their new values, depth not included.

    Raises:
        PlanError: the stock config cannot express the cut, or a field is not known; the field is named.
    """
    cut = Cut(fields=fields, num_layers=num_layers, kept=kept)
    reason = next((why for why in map_refusals(cut)), None)
    if reason is not None:
        raise PlanError(reason)
    rules = RULES | REFUSING_RULES
    return {name: rules[name](cut, name, value) for name, value in fields.items() if name in rules}


def map_refusals(cut: Cut) -> list[str]:
    """Return why the cut cannot be expressed, one sentence per field; empty where it can."""
    return [why for check in refusal_checks(cut.fields, cut.num_layers) if (why := check(cut.kept)) is not None]


def refusal_checks(fields: Mapping[str, Any], num_layers: int) -> list[Callable[[tuple[int, ...]], str | None]]:
    """Return the checks that can refuse a cut of this config: each maps kept layers to a reason or None.

    Most configs have none, and then every block is legal.
    """
    rules: list[tuple[str, Rule, Any]] = [
        (name, rule, fields[name]) for name, rule in REFUSING_RULES.items() if fields.get(name) not in (None, 0, [])
    ]
    kind = fields.get("model_type", "")
    if kind in _WHOLE_FAMILIES:
        field, because = _WHOLE_FAMILIES[kind]
        rules.insert(0, (field, _never(because), True))
    if kind in _NUMBERED_FAMILIES:
        field, what = _NUMBERED_FAMILIES[kind]
        rules.insert(0, (field, _numbers_stay(what), True))
    because = "is not known to this version, and may hold per-layer data"
    rules += [(name, _never(because), True) for name in unknown_fields(fields, num_layers)]

    def check_of(name: str, rule: Rule, value: Any) -> Callable[[tuple[int, ...]], str | None]:
        def check(kept: tuple[int, ...]) -> str | None:
            try:
                rule(Cut(fields=fields, num_layers=num_layers, kept=kept), name, value)
            except PlanError as error:
                return str(error)
            return None

        return check

    return [check_of(*entry) for entry in rules]


def unknown_fields(fields: Mapping[str, Any], num_layers: int) -> tuple[str, ...]:
    """Return the fields that look as if they held per-layer data and that no rule covers."""
    known = RULES.keys() | REFUSING_RULES.keys() | INERT | _DEPTH_NAMES
    known |= {field for field, _ in _WHOLE_FAMILIES.values()}
    return tuple(n for n, v in fields.items() if n not in known and _looks_per_layer(n, v, num_layers))


def _looks_per_layer(name: str, value: Any, num_layers: int) -> bool:
    if isinstance(value, list | tuple):
        return len(value) == num_layers or bool(value and _LIST_NAME.search(name))
    if isinstance(value, dict):
        return bool(value) and all(isinstance(k, int) or (isinstance(k, str) and k.isdigit()) for k in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return _COUNT_NAME.search(name) is not None
