"""What stands beside the weights: the source's own files, byte for byte, and its config.json with the cut's changes.

Spelling and order of the config stay, and no field is written anew that the cut does not change; so what older readers
find in the source they find in the export. Two things are added or taken away: RoPE parameters stand at the top level
too, where transformers 4 looks for them, and what belongs to a machine (MACHINE_FIELDS) goes.
"""

import copy
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from shortviz.errors import ExportError
from shortviz.model.config import MACHINE_FIELDS, without_machine_fields
from shortviz.model.files import special_float
from shortviz.model.gguf.dequantise import save_tokenizer
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import text_config, text_part
from shortviz.model.load import parse_config
from shortviz.model.tokenizer import is_sentencepiece_alone
from shortviz.records.model import STORED
from shortviz.settings import settings

_TOKENIZER = re.compile(
    r"tokenizer.*\.(json|model)|tokenizer\.model\.v\d+|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|"
    r"spiece\.model|.*\.(bpe\.model|tiktoken|spm)|tekken\.json|chat_template\.(jinja|json)|generation_config\.json"
)
_PROCESSORS = re.compile(r"(.*_)?(pre)?processor_config\.json")
"""Of images and sound: only of a model that keeps the parts they are for."""
_TEMPLATES = "additional_chat_templates"
_DTYPE = ("dtype", "torch_dtype")
_NOT_COMPARED = {*_DTYPE, "architectures", "quantization_config", "transformers_version"}


def stated_dtype(pruned: ModelHandle, out_dtype: str = STORED) -> str | None:
    """Return the dtype that the config of an export states: the source's (None: none), or one asked for, if no wider.

    That of the weights, `out_dtype`, goes before both. A config that states none is read as one of float32.
    """
    if out_dtype != STORED:
        return out_dtype
    asked = pruned.ref.dtype
    stated = _source_dtype(pruned)
    if pruned.folder is None or asked in ("auto", stated or "float32"):
        return stated
    wider = getattr(torch, asked).itemsize > getattr(torch, stated or "float32").itemsize
    return stated if wider else asked


def _source_dtype(pruned: ModelHandle) -> str | None:
    found: Any = pruned.model.dtype
    if pruned.folder is not None:
        config = _parse(pruned.info.id, json.loads((pruned.folder / "config.json").read_text(encoding="utf-8")))
        found = config.dtype or text_config(config).dtype
    return None if found is None else str(found).removeprefix("torch.")


def write_texts(
    pruned: ModelHandle, folder: Path, *, quantization: Mapping[str, Any] | None = None, out_dtype: str = STORED
) -> tuple[str, ...]:
    """Write config.json, tokenizer and generation config; return sentences about what is not the source's.

    `quantization` is that of quantised weights that were cut, `out_dtype` what the weights are written in. Raises
    ExportError where the source's config cannot say what the cut model is.
    """
    source = pruned.folder
    if source is None:
        return _of_objects(pruned, folder, out_dtype)
    text = (source / "config.json").read_text(encoding="utf-8")
    fields = _cut_fields(json.loads(text), pruned)
    machine = sorted(MACHINE_FIELDS & json.loads(text).keys())
    notes = (f"`config.json` leaves out {', '.join(machine)}: of a machine, not of the model.",) if machine else ()
    if fields is None:  # only the text part of a larger model is loaded, which has a config of its own
        fields = _fields_of(pruned, out_dtype)
        notes = (
            *notes,
            f"`config.json` is of type {fields['model_type']}: that of the text model alone.",
        )
    if source.is_relative_to(settings().cache_dir.absolute() / "gguf"):
        notes = (*notes, "The source is a GGUF file: config and tokenizer are what transformers makes of its header.")
    if quantization is not None:
        fields["quantization_config"] = dict(quantization)
    if (dtype := stated_dtype(pruned, out_dtype)) != _source_dtype(pruned):
        _state_dtype(fields, str(dtype))
    (folder / "config.json").write_text(_like(text, fields), encoding="utf-8")
    if is_sentencepiece_alone(source):
        save_tokenizer(pruned.tokenizer, folder)
        notes = (*notes, "`tokenizer.json` is added: `tokenizer.model` alone is another tokenizer to transformers 5.")
    composite = text_part(pruned.model.config) is not None
    for path in _kept_files(source, pruned.tokenizer, composite=composite):
        kept = folder / path.relative_to(source)
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, kept)
    return notes


def _kept_files(source: Path, tokenizer: PreTrainedTokenizerBase, *, composite: bool) -> Iterator[Path]:
    """Yield the files of a checkpoint folder that a cut does not change, but for weights."""
    named = set(tokenizer.vocab_files_names.values())
    for path in sorted(source.iterdir()):
        if path.name == _TEMPLATES and path.is_dir():
            yield from sorted(path.glob("*.jinja"))
        wanted = path.name in named or _TOKENIZER.fullmatch(path.name)
        if path.is_file() and (wanted or (composite and _PROCESSORS.fullmatch(path.name))):
            yield path


def _of_objects(pruned: ModelHandle, folder: Path, out_dtype: str) -> tuple[str, ...]:
    """Write what transformers writes for a model and a tokenizer that came without files."""
    (folder / "config.json").write_text(_like("", _fields_of(pruned, out_dtype)), encoding="utf-8")
    notes: tuple[str, ...] = (
        "The model was given as an object: weights, config and tokenizer are written as transformers writes them.",
    )
    if pruned.model.generation_config is not None and pruned.model.can_generate():
        found, left_out = savable(pruned.model.generation_config)
        found.save_pretrained(folder)
        notes += left_out
    save_tokenizer(pruned.tokenizer, folder)
    return notes


def _fields_of(pruned: ModelHandle, out_dtype: str) -> dict[str, Any]:
    """Return config.json of a model, as `save_pretrained` writes it."""
    config = copy.deepcopy(pruned.model.config)
    config.dtype = stated_dtype(pruned, out_dtype)
    config.architectures = [type(pruned.model).__name__]
    fields = without_machine_fields(json.loads(config.to_json_string()))
    fields.pop("quantization_config", None)
    _spell_rope(fields)
    for part in fields.values():
        if isinstance(part, dict):
            _spell_rope(part)
    return fields


def _cut_fields(fields: dict[str, Any], pruned: ModelHandle) -> dict[str, Any] | None:
    """Return the source's fields with those changed that the cut changes; None where they are of another model type."""
    name = pruned.info.id
    uncut = _parse(name, fields)
    target = pruned.model.config
    if type(uncut) is not type(target):
        return None
    fields, part = without_machine_fields(fields), text_part(target)
    inner = fields if part is None else fields.setdefault(part, {})
    old, new = _plain(text_config(uncut)), _plain(text_config(target))
    changed = {key: value for key, value in new.items() if key not in _NOT_COMPARED and old.get(key) != value}
    aliases = text_config(target).attribute_map
    for key, value in changed.items():
        for spelled in (key, *(alias for alias, meant in aliases.items() if meant == key)):
            if spelled in inner:
                inner[spelled] = value
    _spell_rope(inner)
    read = _plain(text_config(_parse(name, fields)))
    # What the config class derives from the number of layers it may derive otherwise now: then it is written out.
    inner |= {key: value for key, value in new.items() if key not in _NOT_COMPARED and read.get(key) != value}
    read = _plain(text_config(_parse(name, fields)))
    odd = next((key for key, value in new.items() if key not in _NOT_COMPARED and read.get(key) != value), None)
    if odd is not None:
        raise ExportError(f"The config.json of {name} cannot say {odd} = {new[odd]!r}; choose other layers.")
    return fields


def _parse(name: str, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the config that transformers reads out of config.json, but for how weights are quantised."""
    plain = {key: value for key, value in fields.items() if key != "quantization_config"}
    return parse_config(name, json.loads(json.dumps(plain), object_hook=special_float))


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    """Return all fields of a config as JSON holds them."""
    plain: dict[str, Any] = without_machine_fields(json.loads(config.to_json_string(use_diff=False)))
    return plain


def _spell_rope(part: dict[str, Any]) -> None:
    """Put RoPE parameters to the top level too, where transformers 4 and what is made for it look for them.

    A missing `rope_theta` is read as 10,000 there, in silence. Those by layer type have no such spelling.
    """
    rope = part.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope or any(isinstance(v, dict) for v in rope.values()):
        return
    apart = ("rope_theta", "partial_rotary_factor")
    for name in apart:
        if name in rope:
            part.setdefault(name, rope[name])
    if rope.get("rope_type", "default") != "default" and not part.get("rope_scaling"):
        part["rope_scaling"] = {name: value for name, value in rope.items() if name not in apart}


def _state_dtype(fields: dict[str, Any], dtype: str) -> None:
    """Say in a config, and in the configs inside it, what the weights were asked to be written in."""
    for part in (fields, *(value for value in fields.values() if isinstance(value, dict))):
        for name in _DTYPE:
            if name in part:
                part[name] = dtype
    if not any(name in fields for name in _DTYPE):
        fields["torch_dtype"] = dtype


def _like(text: str, fields: Mapping[str, Any]) -> str:
    """Return fields as JSON in the form of the source's text; the very text where they say the same."""
    if text and json.loads(text) == fields:
        return text
    indent = re.match(r"\s*\{\s*?\n([ \t]+)", text)
    wide = 2 if not text else indent.group(1) if indent else None
    end = "\n" if not text or text.endswith("\n") else ""
    return json.dumps(fields, indent=wide, ensure_ascii=text.isascii()) + end


_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty")
_CACHE = ("cache_implementation", "cache_config")
_OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def savable(config: GenerationConfig) -> tuple[GenerationConfig, tuple[str, ...]]:
    """Return a copy that `save_pretrained` accepts, and sentences about what had to go: it refuses what loading takes.

    First only values without effect go (a temperature beside `do_sample=False`); where that is not enough, everything
    but the token ids.
    """
    found = copy.deepcopy(config)
    if _problem(found) is None:
        return found, ()
    names = (
        *(_SAMPLING if config.do_sample is not True else ()),
        *(_BEAMS if config.num_beams in (None, 1) else ()),
        *(_CACHE if config.use_cache is False else ()),
        *(_OUTPUTS if config.return_dict_in_generate is not True else ()),
        *(("pad_token_id",) if config.pad_token_id is not None and config.pad_token_id < 0 else ()),
    )
    idle = {name: getattr(found, name) for name in names if getattr(found, name, None) is not None}
    for name in idle:
        setattr(found, name, None)
    problem = _problem(found)
    if problem is None:
        dropped = ", ".join(f"{name}={value!r}" for name, value in idle.items())
        return found, (
            f"`generation_config.json` leaves out {dropped}: without effect there, and refused by transformers.",
        )
    bare = GenerationConfig(**{name: getattr(config, name) for name in _TOKENS})
    return bare, (f"`generation_config.json` holds only the token ids; the original is invalid ({problem}).",)


def _problem(config: GenerationConfig) -> str | None:
    """Return why `save_pretrained` would refuse the config; one unchanged since it was loaded is only warned about."""
    unchanged = getattr(config, "_original_object_hash", None) == hash(config)
    try:
        config.validate(strict=not unchanged)
    except ValueError as error:
        lines = [line.strip("- ") for line in str(error).splitlines() if line.strip()]
        return lines[1] if len(lines) > 1 else lines[0]
    return None
