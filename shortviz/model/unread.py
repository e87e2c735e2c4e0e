"""What a checkpoint holds that is not read: prediction heads, parts for pictures and sound, second sources."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping

from shortviz.errors import ModelError
from shortviz.model.files import ADAPTER, INDEX, PICKLES, WEIGHTS, ModelFiles, read_json
from shortviz.model.headers import Entry, safetensors_header, same_bytes
from shortviz.model.layers import model_names, num_layers, text_config
from shortviz.records.formatting import counted

_SENSES = re.compile(
    r"(^|\.)(visual|vision|image|video|audio|speech|multi_modal_projector|mm_projector|embed_(vision|audio))"
)
_PICKLED_WEIGHTS = re.compile(r"pytorch_model|consolidated|model|tf_model|flax_model")
_MOST_NAMED = 3


OLD_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias)$")
"""Constants that old versions of transformers saved among the weights; models compute them now."""


def head_pattern(config: PreTrainedConfig) -> re.Pattern[str]:
    """Return what the names of prediction heads match (MTP: further tokens are guessed, nothing else reads them).

    They are called `mtp.*` or `mtp_*`, or are stored as layers L .. L + num_nextn_predict_layers - 1
    (DeepSeek-V3, GLM-4.5).
    """
    layers, more = num_layers(config), int(getattr(text_config(config), "num_nextn_predict_layers", None) or 0)
    numbers = "|".join(str(layers + i) for i in range(more))
    return re.compile(r"(^|\.)mtp[._]" + (rf"|(^|\.)layers\.({numbers})\." if numbers else ""))


def unread_tensors(config: PreTrainedConfig, names: Collection[str], *, quantised: bool = False) -> dict[str, str]:
    """Return {name of a tensor that is not read: the sentence that says so}; the sentences are the distinct values.

    Of `quantised` weights, whose scales no class knows, only prediction heads are told.
    """
    pattern, found = head_pattern(config), dict[str, str]()
    heads = [name for name in names if pattern.search(name)]
    if heads:
        said = (
            f"{counted(len(heads), 'tensor')} of prediction heads (MTP, such as {heads[0]}) {_is(heads)} left out: the "
        )
        found |= dict.fromkeys(heads, said + "loss and the text that is written do not use them.")
    kind = AutoModelForCausalLM._model_mapping[type(config)]
    patterns = [_SENSES, *map(re.compile, kind._keys_to_ignore_on_load_unexpected or ())]
    rest = [name for name in names if name not in found and not OLD_BUFFERS.search(name)]
    odd = [name for name in rest if any(pattern.search(name) for pattern in patterns)]
    if odd and not quantised:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        known, targets = model.state_dict(), model_names(model, odd, get_model_conversion_mapping(model))
        gone = [name for name in odd if targets[name] not in known]
        senses = [name for name in gone if _SENSES.search(name)]
        others = [name for name in gone if name not in senses]
        if senses:
            said = (
                f"{counted(len(senses), 'tensor')} for pictures or sound (such as {senses[0]}) {_is(senses)} left out: "
                f"{kind.__name__} is the text model alone, and so is what is exported, of type "
                f"{model.config.model_type}."
            )
            found |= dict.fromkeys(senses, said)
        if others:
            said = f"{counted(len(others), 'tensor')} that {kind.__name__} passes over (such as {others[0]}) "
            found |= dict.fromkeys(others, f"{said}{_is(others)} left out.")
    return found


def _is(names: Collection[str]) -> str:
    return "is" if len(names) == 1 else "are"


def unread_files(files: ModelFiles, weights: Collection[str]) -> tuple[str, ...]:
    """Return sentences on what lies beside the weight files that are read, which are those that transformers takes.

    Raises ModelError where there are two whole sets of safetensors with other weights: nobody could say which is meant.
    """
    names, told = files.names, []
    if files.gguf is None and {"config.json", ADAPTER} <= set(names):
        told.append(
            f"The adapter beside the weights of {files.name} ({ADAPTER}) is not used; name it as adapter where "
            "shortviz heal made it, else merge it into the weights with peft."
        )
    local = files.folder is not None
    mapped = _object_in(_object(files.path(INDEX)), "weight_map") if INDEX in names and local else {}
    shards = {shard for shard in mapped.values() if isinstance(shard, str)}
    if WEIGHTS in weights and INDEX in names and shards != {WEIGHTS}:
        told.append(f"{WEIGHTS} of {files.name} is read, as transformers does; {_second_set(files, sorted(shards))}.")
    known = {*weights, *shards}
    other = [n for n in names if n.endswith(".safetensors") and n not in known and not n.startswith("adapter_")]
    other = other if local or INDEX not in names or WEIGHTS not in weights else []
    for what, found in (
        ("safetensors", other),
        ("pickled weights", [n for n in names if n.lower().endswith(PICKLES) and _PICKLED_WEIGHTS.match(n)]),
        ("GGUF files", [n for n in names if n.lower().endswith(".gguf")]),
    ):
        if found:
            more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
            told.append(
                f"Of {files.name} {min(weights)} is read; {what} beside it ({', '.join(found[:_MOST_NAMED])}{more}) "
                "are neither read nor compared."
            )
    return tuple(told) + (differing_files(files.name, files.folder) if files.folder is not None else ())


def _second_set(files: ModelFiles, shards: Sequence[str]) -> str:
    """Return what the files of the index are, beside a whole WEIGHTS; raises ModelError where they are others."""
    if files.folder is None:
        return f"the files that {INDEX} names are not, and were not compared"
    if not shards or any(not (files.folder / shard).is_file() for shard in shards):
        return f"{INDEX} names files that are not all there"
    one = safetensors_header(files.folder / WEIGHTS)
    other: dict[str, Entry] = {}
    for shard in shards:
        other |= safetensors_header(files.folder / shard)
    odd = sorted(one.keys() ^ other.keys())
    differs = odd[0] if odd else next((name for name in sorted(one) if not same_bytes(one[name], other[name])), "")
    if differs:
        raise ModelError(
            f"{files.name} has two whole sets of weights that differ ({differs}): {WEIGHTS} and the files of {INDEX}; "
            "remove the one that is not meant."
        )
    return f"the files of {INDEX} hold the same"


def differing_files(name: str, folder: Path) -> tuple[str, ...]:
    """Return sentences on two sources of a config, tokenizer or chat template that disagree, and which is read."""

    @cache
    def content(file: str) -> dict[str, Any]:  # tokenizer.json is large, and has up to three others beside it
        return _object(folder / file)

    compared: Mapping[tuple[str, str], Callable[[str, str], str]] = {
        ("config.json", "params.json"): lambda one, other: _other_size(content(one), content(other)),
        ("tokenizer.json", "tokenizer.model"): lambda one, other: _other_piece(content(one), folder / other),
        ("tokenizer.json", "vocab.json"): lambda one, other: _other_id(content(one), content(other).items()),
        ("tokenizer.json", "merges.txt"): lambda one, other: _other_merge(content(one), folder / other),
        ("chat_template.jinja", "tokenizer_config.json"): lambda one, other: _other_template(
            folder / one, content(other)
        ),
    }
    told = []
    for (read, other), difference in compared.items():
        if (folder / read).is_file() and (folder / other).is_file() and (differs := difference(read, other)):
            told.append(f"{read} and {other} of {name} disagree ({differs}); {read} is read.")
    return tuple(told)


_SIZES = {"n_layers": "num_hidden_layers", "dim": "hidden_size", "hidden_dim": "intermediate_size"} | {
    f"n_{kind}": f"num_{long}" for kind, long in (("heads", "attention_heads"), ("kv_heads", "key_value_heads"))
}
"""Fields of params.json, which Llama and Mistral are released with, and what config.json calls them."""


def _other_size(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    ours = {**ours, **_object_in(ours, "text_config")}
    pairs = ((n, theirs[n], field, ours[field]) for n, field in _SIZES.items() if n in theirs and field in ours)
    return next((f"{field} {mine} and {n} {value}" for n, value, field, mine in pairs if mine != value), "")


def _other_piece(tokenizer: Mapping[str, Any], model: Path) -> str:
    from sentencepiece import SentencePieceProcessor

    try:
        own = SentencePieceProcessor(model_file=str(model))
    except RuntimeError:  # not sentencepiece's: tiktoken's files have that name too, and this one is not read
        return ""
    return _other_id(tokenizer, ((own.id_to_piece(i), i) for i in range(own.vocab_size())))


def _other_id(tokenizer: Mapping[str, Any], pieces: Iterable[tuple[str, int]]) -> str:
    words = _object_in(tokenizer, "model").get("vocab") or {}
    ids = dict(words) if isinstance(words, dict) else {word: number for number, (word, _) in enumerate(words)}
    ids |= {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}
    odd = ((piece, number) for piece, number in pieces if ids.get(piece) != number)
    return next((f"{piece!r} is {ids.get(piece, 'not there')} and {number}" for piece, number in odd), "")


def _other_merge(tokenizer: Mapping[str, Any], merges: Path) -> str:
    found = _object_in(tokenizer, "model").get("merges") or ()
    ours = [merge if isinstance(merge, str) else " ".join(merge) for merge in found]
    lines = merges.read_text(encoding="utf-8").split("\n")
    theirs = [line for line in lines[lines[0].startswith("#version") :] if line.strip()]
    pairs = enumerate(zip_longest(ours, theirs, fillvalue="not there"))
    return next((f"merge {number} is {one!r} and {other!r}" for number, (one, other) in pairs if one != other), "")


def _other_template(template: Path, config: Mapping[str, Any]) -> str:
    inside = config.get("chat_template")
    if isinstance(inside, list):  # of several templates, each with its name
        named = {entry.get("name"): entry.get("template") for entry in inside if isinstance(entry, dict)}
        inside = named.get("default")
    same = not isinstance(inside, str) or inside.strip() == template.read_text(encoding="utf-8").strip()
    return "" if same else "about the chat template"


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def _object_in(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = content.get(name)
    return found if isinstance(found, dict) else {}
