"""The rules by which one config field is rewritten when layers are removed, or the removal refused.

Each rule maps (cut, field name, value) to the new value. `model/config.py` says which field follows which rule.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shortviz.errors import PlanError
from shortviz.records.formatting import layers_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """One removal, as the rules see it."""

    fields: Mapping[str, Any]
    """The text config's fields, `config.to_dict()`."""
    num_layers: int
    kept: tuple[int, ...]
    """Ascending."""


Rule = Callable[[Cut, str, Any], Any]
"""Maps (cut, field name, value) to the new value; raises PlanError where the stock config cannot express the cut."""

WITHOUT_ATTENTION = frozenset({"conv", "linear_attention", "mamba", "mlp", "moe", "recurrent"})
"""Layer types that keep no keys and values."""


def _refuse(field: str, because: str, advice: str = "choose other layers, or fewer of them") -> PlanError:
    return PlanError(f"These layers cannot be removed: config field {field} {because}; {advice}.")


def slice_layers(cut: Cut, field: str, value: Any) -> Any:
    """Keep the entries of the kept layers, in a list of one entry a layer."""
    if not isinstance(value, list | tuple):
        return value
    if len(value) != cut.num_layers:
        raise _refuse(field, f"has {len(value)} entries for {cut.num_layers} layers", "repair the config")
    return [value[i] for i in cut.kept]


def slice_long(cut: Cut, field: str, value: Any) -> Any:
    """Keep the entries of the kept layers, in a field that some families use for a list of another kind."""
    per_layer = isinstance(value, list | tuple) and len(value) == cut.num_layers
    return [value[i] for i in cut.kept] if per_layer else value


def renumber(cut: Cut, field: str, value: Any) -> Any:
    """Drop the removed layers from a list of layer numbers and renumber the others."""
    if value is None:
        return None
    listed = set(value)
    return [new for new, old in enumerate(cut.kept) if old in listed]


def renumber_keys(cut: Cut, field: str, value: Any) -> Any:
    """Renumber the keys of a mapping from layer number to settings; text keys keep their width, zero-padded."""
    if not value:
        return value
    by_layer = {int(key): (key, settings) for key, settings in value.items()}
    renumbered: dict[Any, Any] = {}
    for new, old in enumerate(cut.kept):
        if old in by_layer:
            key, settings = by_layer[old]
            renumbered[str(new).zfill(len(key)) if isinstance(key, str) else new] = settings
    return renumbered


def count_prefix(cut: Cut, field: str, value: Any) -> Any:
    """Count those of the first `value` layers that stay."""
    return value if value is None else sum(1 for i in cut.kept if i < value)


def dense_step(cut: Cut, field: str, value: Any) -> Any:
    """Return 1 for decoder_sparse_step: `mlp_only_layers` will name every dense layer."""
    return 1


def mlp_only(cut: Cut, field: str, value: Any) -> Any:
    """Renumber mlp_only_layers, with the layers that decoder_sparse_step makes dense."""
    step = cut.fields.get("decoder_sparse_step") or 1
    listed = set(value or ())
    return [new for new, old in enumerate(cut.kept) if old in listed or (old + 1) % step]


def write_out_cycle(cut: Cut, field: str, value: Any) -> Any:
    """Write out the types of the kept layers: recurrent_gemma repeats block_types over all layers."""
    return [value[i % len(value)] for i in cut.kept]


def write_out_attention_types(cut: Cut, field: str, value: Any) -> Any:
    """Write out the types of the kept layers as one of gpt_neo's [[types], repeat] pairs."""
    types = [kind for kinds, repeat in value for _ in range(repeat) for kind in kinds]
    return [[[types[i] for i in cut.kept], 1]]


def period_with(offset_field: str) -> Rule:
    """Return the rule for the period of a rhythm whose offset is in another field."""

    def keep(cut: Cut, field: str, value: Any) -> Any:
        _shifted(cut, field, offset_field)
        return value

    return keep


def offset_with(period_field: str) -> Rule:
    """Return the rule for the offset of a rhythm whose period is in another field."""

    def shift(cut: Cut, field: str, value: Any) -> Any:
        return _shifted(cut, period_field, field)

    return shift


def _shifted(cut: Cut, period_field: str, offset_field: str) -> int:
    """Return the offset with which every kept layer stays what it was (i % period == offset), or raise PlanError."""
    period, offset = int(cut.fields[period_field]), int(cut.fields[offset_field])
    marked = [old % period == offset for old in cut.kept]
    # The first marked layer settles the offset; with none marked, it must lie past the last layer.
    candidate = marked.index(True) % period if True in marked else len(marked)
    if candidate < period and marked == [new % period == candidate for new in range(len(marked))]:
        return candidate
    raise _refuse(period_field, f"repeats every {period} layers, and the layers that stay break that rhythm")


def _moe_bounds(cut: Cut) -> tuple[int, int]:
    """Return ernie4_5_moe's (start, end) with which every kept layer stays dense or sparse, or raise PlanError."""
    start, end = cut.fields["moe_layer_start_index"], cut.fields["moe_layer_end_index"]
    end = cut.num_layers - 1 if end == -1 else end
    interval = cut.fields["moe_layer_interval"]
    new_start = sum(1 for old in cut.kept if old < start)
    new_end = sum(1 for old in cut.kept if old <= end) - 1
    sparse = [(old + 1) % interval == 0 and start <= old <= end for old in cut.kept]
    if [(new + 1) % interval == 0 and new_start <= new <= new_end for new in range(len(cut.kept))] != sparse:
        raise _refuse("moe_layer_interval", f"makes every {interval}th layer sparse, and this cut breaks that rhythm")
    # The config class reads an end of -1 as the last layer.
    return (new_start, new_end) if any(sparse) else (len(cut.kept), len(cut.kept) - 1)


def moe_start(cut: Cut, field: str, value: Any) -> Any:
    """Return the first layer that may be sparse (ernie4_5_moe)."""
    return _moe_bounds(cut)[0]


def moe_end(cut: Cut, field: str, value: Any) -> Any:
    """Return the last layer that may be sparse (ernie4_5_moe)."""
    return _moe_bounds(cut)[1]


def _producers_stay(cut: Cut, field: str, pairs: Sequence[tuple[int, int]]) -> None:
    """Refuse when a kept layer reads what a removed layer computes; pairs are (reader, producer)."""
    kept = set(cut.kept)
    for reader, producer in pairs:
        if reader in kept and producer not in kept:
            raise _refuse(field, f"makes layer {reader} reuse what layer {producer} computes, and that would go")


def indexer_types(cut: Cut, field: str, value: Any) -> Any:
    """Slice the list; a `shared` layer reads the token choice of the last `full` layer before it, which must stay."""
    if value is None:
        return None
    full = [i for i, kind in enumerate(value) if kind == "full"]
    pairs = [(i, max((f for f in full if f < i), default=i)) for i, kind in enumerate(value) if kind == "shared"]
    _producers_stay(cut, field, pairs)
    return slice_layers(cut, field, value)


def kv_sources(cut: Cut, field: str, value: Any) -> Any:
    """Slice the list of the layers whose keys and values each layer reads, and renumber what it says."""
    if value is None:
        return None
    _producers_stay(cut, field, [(i, source) for i, source in enumerate(value) if source is not None])
    new = {old: i for i, old in enumerate(cut.kept)}
    return [None if value[i] is None else new[value[i]] for i in cut.kept]


def kv_readers(fields: Mapping[str, Any], num_layers: int) -> dict[int, tuple[int, ...]]:
    """Return {layer that keeps its keys and values: layers that read them}, by num_kv_shared_layers and layer_types.

    The last `num_kv_shared_layers` layers make none: each reads those of the last layer of its type before them
    (`kv_sharing_modes` of transformers' Gemma3nTextConfig and Gemma4TextConfig).
    """
    types = fields["layer_types"]
    first = num_layers - (fields.get("num_kv_shared_layers") or 0)
    readers: dict[int, tuple[int, ...]] = {}
    for reader in range(first, num_layers):
        producer = max((i for i in range(first) if types[i] == types[reader]), default=reader)
        readers[producer] = (*readers.get(producer, ()), reader)
    return readers


def kv_shared(cut: Cut, field: str, value: Any) -> Any:
    """Count the last `value` layers that stay; what they read must stay too."""
    if not value:
        return value
    kept = set(cut.kept)
    for producer, readers in kv_readers(cut.fields, cut.num_layers).items():
        left = [reader for reader in readers if reader in kept]
        if left and producer not in kept:
            kind = cut.fields["layer_types"][producer]
            raise _refuse(
                field,
                f"makes layer{'s' if len(left) > 1 else ''} {layers_text(left)} read the keys and values of layer "
                f"{producer} (the last {kind} layer that makes its own), and that would go",
                f"keep layer {producer}, or remove what reads it as well",
            )
    return sum(1 for i in cut.kept if i >= cut.num_layers - value)


def numbers_stay(what: str) -> Rule:
    """Return a rule for a layer number that enters the computation: only layers at the end can go."""

    def check(cut: Cut, field: str, value: Any) -> Any:
        if value and cut.kept[-1] != len(cut.kept) - 1:
            raise _refuse(field, f"makes {what} depend on a layer's number; only the last layers can go")
        return value

    return check


def never(because: str) -> Rule:
    """Return a rule that refuses every cut of a model that uses the field."""

    def refuse(cut: Cut, field: str, value: Any) -> Any:
        if value:
            raise _refuse(field, because, "choose another model")
        return value

    return refuse


def last_is_full(cut: Cut, field: str, value: Any) -> Any:
    """Refuse a cut after which the last layer has no full attention: the config class would give it some."""
    if cut.fields["layer_types"][cut.kept[-1]] != "full_attention":
        raise _refuse(field, "must end with full_attention")
    return value


def end_stays(position: int, what: str) -> Rule:
    """Return a rule that keeps the first (0) or last (-1) layer, whose weights are not those of the others."""

    def check(cut: Cut, field: str, value: Any) -> Any:
        if cut.kept[position] != range(cut.num_layers)[position]:
            raise _refuse(field, what, f"keep the {'last' if position else 'first'} layer")
        return value

    return check


def attention_stays(kinds: Sequence[str]) -> Rule:
    """Return a rule that refuses to leave a hybrid model without attention: its cache counts tokens there."""

    def check(cut: Cut, field: str, value: Any) -> Any:
        if all(kinds[i] in WITHOUT_ATTENTION for i in cut.kept):
            raise _refuse(field, "would name no attention layer, and generating with a cache needs one")
        return value

    return check


def both_kinds(cut: Cut, field: str, value: Any) -> Any:
    """Refuse a cut that leaves only linear layers, or none."""
    linear = {cut.fields["layer_types"][i] == "linear_attention" for i in cut.kept}
    if len(linear) < 2:
        raise _refuse(field, "must hold both linear_attention and full attention")
    return value


def depth_again(cut: Cut, field: str, value: Any) -> Any:
    """Return the new depth, in a field that states it a second time."""
    return len(cut.kept) if value == cut.num_layers else value


def depth_scale(cut: Cut, field: str, value: Any) -> Any:
    """Keep minicpm3's residual scale, scale_depth / sqrt(layers)."""
    return value * math.sqrt(len(cut.kept) / cut.num_layers)


def no_extra_heads(cut: Cut, field: str, value: Any) -> Any:
    """Return 0 prediction heads: they are not part of the causal language model that transformers loads or saves."""
    return 0 if value else value
