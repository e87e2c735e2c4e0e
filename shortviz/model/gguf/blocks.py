"""What a GGUF header says about a model's blocks: whether it fits its tensors, and what it says when blocks go.

As in `model/config.py`, a field that may hold per-layer data and is not known is refused, never guessed. Which fields
llama.cpp reads, and what it derives from a block's number, is from its sources (src/llama-model.cpp, src/models/).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from shortviz.errors import ModelError, PlanError
from shortviz.model.gguf.container import BOOL, Gguf, GgufTensor, Key, array_key, number_key
from shortviz.records.plan import PrunePlan

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
SLIDING: Final = "attention.sliding_window_pattern"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rhythm:
    """Which blocks llama.cpp treats otherwise, by their number: all but the last one of every `period`."""

    period: int
    """Where the header states none."""
    stated: str
    """The key that may state the period."""
    listed: str = ""
    """The key under which it may stand for each block; "" where every reader does not know one."""


RHYTHMS: Mapping[str, Rhythm] = {
    "gemma2": Rhythm(period=2, stated=SLIDING, listed=SLIDING),
    "gemma3": Rhythm(period=6, stated=SLIDING, listed=SLIDING),
    "gpt-oss": Rhythm(period=2, stated=SLIDING, listed=SLIDING),
    "qwen35": Rhythm(period=4, stated="full_attention_interval"),
    "qwen35moe": Rhythm(period=4, stated="full_attention_interval"),
}
ARCHITECTURES = frozenset(RHYTHMS) | {
    *("bloom", "deci", "falcon", "gpt2", "lfm2", "llama", "mamba", "minimax-m2", "nemotron", "openelm", "phi3"),
    *("qwen2", "qwen2moe", "qwen3", "qwen3moe", "stablelm", "starcoder2"),
}
"""Those whose every use of a block's number is known here."""
_SCALED_BY_DEPTH: Mapping[str, int] = {"gemma2": 46, "gemma3": 62}
"""llama.cpp takes a model of so many blocks for the 27B one, which has another attention scale."""

_PER_BLOCK = (
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.recurrent_layers", SLIDING, "attention.sliding_window", "expert_feed_forward_length"),
    *("expert_used_count", "feed_forward_length", "rope.dimension_count", "rope.freq_base"),
    *("swiglu_clamp_exp", "swiglu_clamp_shexp"),
)
"""One value a block, where they are arrays; llama.cpp reads most of them as one number too."""
_NOT_PER_BLOCK = ("rope.dimension_sections", "classifier.output_labels")
_REFUSED: Mapping[str, str] = {
    "attention.shared_kv_layers": "lets the last layers read keys and values of earlier ones",
    "embedding_length_per_layer_input": "packs the embeddings of all layers into one table",
    "interleave_moe_layer_step": "makes every few layers sparse, by their numbers",
    "moe_every_n_layers": "makes every few layers sparse, by their numbers",
    "n_deepstack_layers": "counts the layers that are given features of images",
    "nextn_predict_layers": "says that the last blocks predict further tokens, which belong to no layer",
    "rescale_every_n_layers": "halves weights and states every few layers, by their numbers",
}


def check_blocks(source: Gguf) -> Gguf:
    """Return what was read, after checking that the header describes the blocks that are there.

    Raises ModelError where there are more or fewer blocks than it counts, or an array has another length.
    """
    count, name = source.number("block_count"), source.path.name
    key = f"{source.architecture}.block_count"
    numbers = {tensor.name: int(found[1]) for tensor in source.tensors if (found := _BLOCK.fullmatch(tensor.name))}
    beyond = sorted((number, tensor) for tensor, number in numbers.items() if number >= count)
    if beyond:
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        raise ModelError(
            f"The GGUF file {name} holds {beyond[0][1]}{more}, and its {key} says {count} blocks, 0-{count - 1}: no "
            f"field of its header explains these tensors; set {key} to {beyond[-1][0] + 1} if they belong to the "
            "model, or fetch the file again."
        )
    heads, there = source.keys.get(f"{source.architecture}.attention.head_count"), set(numbers.values())
    listed = heads is not None and heads.is_array  # then a block may have neither heads nor neurons (deci)
    missing = next((number for number in range(count) if number not in there and not listed), None)
    if missing is not None:
        raise ModelError(
            f"The GGUF file {name} holds no tensor of block {missing}, and its {key} says {count} blocks, "
            f"0-{count - 1}; fetch the file again."
        )
    for suffix in _PER_BLOCK:
        array = source.keys.get(f"{source.architecture}.{suffix}")
        if array is not None and array.is_array and array.length != count:
            raise ModelError(
                f"The array {source.architecture}.{suffix} of the GGUF file {name} has {array.length} "
                f"entries, and the file {count} blocks: it was probably cut by a tool that forgets the arrays; take "
                "the uncut file, and cut it here."
            )
    return source


def marked_blocks(source: Gguf) -> tuple[bool, ...] | None:
    """Return for each layer whether the rhythm's kind of attention is its own; None where all layers are of one kind.

    It is a sliding window (gemma, gpt-oss), or a linear attention (qwen35).
    """
    rhythm = RHYTHMS.get(source.architecture)
    if rhythm is None:
        return None
    listed = source.keys.get(f"{source.architecture}.{rhythm.listed}")
    if listed is not None and listed.is_array:
        return tuple(bool(value) for value in listed.value)
    return _in_rhythm(source.number(rhythm.stated, rhythm.period), source.num_layers)


def _in_rhythm(period: int, count: int) -> tuple[bool, ...]:
    return tuple(period == 0 or number % period < period - 1 for number in range(count))


def cut_keys(source: Gguf, plan: PrunePlan) -> tuple[dict[str, Key], tuple[str, ...]]:
    """Return the keys of the file without the plan's blocks, in order, and sentences about what had to be changed.

    Raises PlanError where the architecture is not known here, or llama.cpp would not read the cut as the model it is.
    """
    architecture, count, kept = source.architecture, source.num_layers, plan.kept
    if architecture not in ARCHITECTURES:
        raise PlanError(
            f"Whether llama.cpp derives something from a block's number in the architecture {architecture} is not "
            "known to this version, so no cut of it is written as GGUF; export it as a folder."
        )
    if plan.num_layers != count:
        raise PlanError(f"The plan is for {plan.num_layers} layers, the GGUF file has {count}; make a new one.")
    if not plan.removed:
        return dict(source.keys), ()
    for suffix, because in _REFUSED.items():
        if source.number(suffix):
            raise _refusal(f"{architecture}.{suffix}", because, "export the cut as a folder")
    _refuse_other_scale(source, len(kept))
    keys: dict[str, Key] = {}
    notes: list[str] = []
    for name, key in source.keys.items():
        suffix = name.removeprefix(f"{architecture}.")
        if suffix == name:
            keys[name] = key
        elif suffix == "block_count":
            keys[name] = number_key(len(kept), key.kind)
        elif suffix == "leading_dense_block_count":
            keys[name] = number_key(sum(1 for number in kept if number < key.value), key.kind)
        else:
            keys[name] = _sliced(source, name, suffix, key, kept, notes)
    _keep_rhythm(source, kept, keys, notes)
    return keys, tuple(notes)


def _sliced(source: Gguf, name: str, suffix: str, key: Key, kept: tuple[int, ...], notes: list[str]) -> Key:
    if not key.is_array or suffix in _NOT_PER_BLOCK:
        return key
    if key.value is None or len(key.value) != source.num_layers:
        raise _refusal(name, "is an array that this version does not know, and may hold numbers of layers")
    if suffix not in _PER_BLOCK:
        notes.append(f"The array {name} was cut too: it has as many entries as the model has layers.")
    return array_key([key.value[number] for number in kept], key.kind)


def _keep_rhythm(source: Gguf, kept: tuple[int, ...], keys: dict[str, Key], notes: list[str]) -> None:
    """Write out which blocks the rhythm marks, where the number that a block has now would say otherwise."""
    marked = marked_blocks(source)
    if marked is None:
        return
    rhythm = RHYTHMS[source.architecture]
    now = tuple(marked[number] for number in kept)
    key = f"{source.architecture}.{rhythm.listed or rhythm.stated}"
    if source.keys.get(key) is not None and source.keys[key].is_array:
        return
    period = source.number(rhythm.stated, rhythm.period)
    if now == _in_rhythm(period, len(kept)):
        return
    if not rhythm.listed:
        raise _refusal(key, f"makes one layer in {period} different, and the layers that stay break that rhythm")
    keys[key] = array_key(now, BOOL)
    notes.append(
        f"{key} lists for each layer whether its window slides, because the layers that stay break the rhythm of "
        f"{period} that is derived without it; an old llama.cpp, which reads no array there, runs this file wrongly."
    )


def _refuse_other_scale(source: Gguf, count: int) -> None:
    special = _SCALED_BY_DEPTH.get(source.architecture)
    if special not in (source.num_layers, count):
        return
    heads = source.number("attention.head_count", 1)
    if source.number("attention.key_length") * heads != source.number("embedding_length"):
        raise _refusal(
            f"{source.architecture}.block_count",
            f"of {special} means another attention scale to llama.cpp, which tells the 27B model by that number",
            "remove another number of layers" if count == special else "export the cut as a folder",
        )


def _refusal(key: str, because: str, advice: str = "choose other layers, or export the cut as a folder") -> PlanError:
    return PlanError(f"These layers cannot be removed from a GGUF file: its key {key} {because}; {advice}.")


def cut_tensors(source: Gguf, plan: PrunePlan) -> dict[str, GgufTensor]:
    """Return {new name: tensor of the source} of what stays, with blocks renumbered, in the source's order."""
    new = {old: number for number, old in enumerate(plan.kept)}
    renamed = {}
    for tensor in source.tensors:
        found = _BLOCK.fullmatch(tensor.name)
        if found is None:
            renamed[tensor.name] = tensor
        elif int(found[1]) in new:
            renamed[f"blk.{new[int(found[1])]}.{found[2]}"] = tensor
    return renamed
