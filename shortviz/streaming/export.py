"""export_streamed: a pruned checkpoint written file to file, no layer ever in memory, dtype and bytes untouched.

The config goes by the same table as everywhere. The proof is the ordinary one where the short model fits in memory: a
fresh process, stock transformers. Where it does not, its files are streamed and compared with the original's, the
removed layers bypassed. Quantised weights cannot be run here; their proof is that every kept byte is the original's.
"""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.conversion_mapping import get_model_conversion_mapping

from shortviz.errors import ModelError, PlanError
from shortviz.export.card import CardFacts
from shortviz.export.export import SHARD_BYTES, TEXT_FILES_BYTES, save_tokenizer, stock_copy, write_card
from shortviz.export.folder import check_space, check_target, filled_beside, move_into_place, sha256, write_error
from shortviz.export.proving import EXPORT_STOPPED
from shortviz.model import load
from shortviz.model.files import INDEX, WEIGHTS
from shortviz.model.handle import ModelHandle
from shortviz.model.headers import Entry, read_shards, twice_there
from shortviz.model.layers import layer_stack, num_layers, pruned_config
from shortviz.model.load import ResolvedModel, model_info
from shortviz.model.placement import DTYPES, choose_placement
from shortviz.model.prune import empty_model, pruned_info
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.measured import ExportReport
from shortviz.records.model import ModelInfo, ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.streaming.model import StreamedModel, model_names, open_streamed
from shortviz.streaming.proof import Proved, prove_bytes, prove_logits

_FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointSource:
    """The checkpoint that is cut."""

    name: str
    folder: Path
    ref: ModelRef
    """With the dtype of the files."""
    model: PreTrainedModel
    """On meta."""
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    entries: Mapping[str, Entry]
    quantised: Mapping[str, Any] | None = None
    """The quantisation config; None for plain weights."""
    opened: StreamedModel | None = None
    """Of plain weights only."""


@contextmanager
def open_source(model: ModelRef | ResolvedModel, *, watch: Watch = NO_WATCH) -> Iterator[CheckpointSource]:
    """Yield the checkpoint, downloaded if need be; raises what `load` raises, but for quantised weights."""
    resolved = load.resolve(model, quantised=True, watch=watch)
    name = resolved.files.name
    if resolved.config is None:
        raise ModelError(f"{name} is a GGUF file not used before; measure it once, which de-quantises it.")
    if getattr(getattr(resolved.config, "text_config", None), "quantization_config", None):
        raise PlanError(f"The field text_config.quantization_config of {name} cannot be rewritten.")
    folder, config = load.fetch(resolved, watch)
    entries = read_shards(folder, name)
    ref = replace(resolved.ref, dtype=_dtype(config, entries), device="cpu")
    source = partial(CheckpointSource, name=name, folder=folder, ref=ref, entries=entries)
    if resolved.quantised is None:
        with open_streamed(replace(resolved, ref=ref, placement=choose_placement(ref)), watch=watch) as opened:
            opened.drop_non_layer_modules()
            yield source(model=opened.model, tokenizer=opened.tokenizer, info=opened.info, opened=opened)
        return
    with torch.device("meta"):
        on_meta = AutoModelForCausalLM.from_config(config, dtype=DTYPES[ref.dtype])
    method = resolved.quantised.get("quant_method", "an unknown method")
    info = model_info(
        on_meta,
        id=name,
        revision=resolved.files.revision,
        reason=f"Quantised by {method}; its files are cut, not run.",
        device="cpu",
        layer_cache_bytes=(0,) * num_layers(config),
    )
    tokenizer = load.read_tokenizer(name, folder)
    yield source(model=on_meta, tokenizer=tokenizer, info=info, quantised=resolved.quantised)


def _dtype(config: PreTrainedConfig, entries: Mapping[str, Entry]) -> str:
    """Return the dtype in which plain from_pretrained would load the files: the config's, else that of most weights."""
    stated = str(config.dtype or "").removeprefix("torch.")
    counted = Counter({"float32": 0})
    for entry in entries.values():
        if entry.dtype in _FLOATS:
            counted[_FLOATS[entry.dtype]] += entry.num_bytes
    return stated if stated in DTYPES else counted.most_common(1)[0][0]


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptTensors:
    """What the files of the pruned checkpoint will hold."""

    tensors: Mapping[str, Entry]
    """By new name, in the order of the model."""
    path: str
    """Where the files keep the layers, e.g. `model.layers`."""
    notes: tuple[str, ...] = ()
    """Sentences about tensors that were left out beside the removed layers."""


def kept_tensors(
    model: PreTrainedModel, name: str, entries: Mapping[str, Entry], plan: PrunePlan, *, quantised: bool = False
) -> KeptTensors:
    """Return the tensors that stay, with the layers renumbered; `model` is the uncut one, on meta.

    Tensors of layers that the config does not count (prediction heads), constants of old versions, and what repeats the
    tensor it is tied to are left out.
    Raises ModelError where a file holds what the config does not describe (scales of `quantised` weights may be there),
    PlanError where the files do not keep the layers under one name.
    """
    names, known = model_names(model, entries, get_model_conversion_mapping(model)), model.state_dict()
    order = {key: place for place, key in enumerate(known)}
    path = file_path(names, known, layer_stack(model).path)
    layer = re.compile(rf"{re.escape(path)}\.(\d+)\.")
    ignored = [re.compile(pattern) for pattern in (model._keys_to_ignore_on_load_unexpected or ())]
    ignored.append(load.OLD_BUFFERS)
    numbers = {old: new for new, old in enumerate(plan.kept)}
    again = twice_there(model.all_tied_weights_keys, {names[key]: key for key in entries}, entries, name)
    kept: dict[str, Entry] = {}
    strange: set[str] = set()
    heads: set[int] = set()
    for key in sorted(entries, key=lambda key: (order.get(names[key], len(order)), _natural(key))):
        found = layer.match(key)
        number = int(found.group(1)) if found else None
        if number is not None and number >= plan.num_layers:
            heads.add(number)
        elif key in again or (names[key] not in known and any(pattern.search(names[key]) for pattern in ignored)):
            continue
        elif names[key] not in known and not quantised:
            strange.add(names[key])
        elif found is None:
            kept[key] = entries[key]
        elif number in numbers:
            kept[f"{path}.{numbers[number]}.{key[found.end() :]}"] = entries[key]
    load.refuse_disagreement(name, {"missing_keys": (), "unexpected_keys": strange, "mismatched_keys": ()})
    listed = ", ".join(map(str, sorted(heads)))
    notes = (
        (f"Tensors of layers beyond the config's count ({listed}; prediction heads) are left out.",) if heads else ()
    )
    return KeptTensors(tensors=kept, path=path, notes=notes)


def file_path(names: Mapping[str, str], known: Mapping[str, object], path: str) -> str:
    """Return where the files keep the layers, found by the tensors whose layer is known; raises PlanError."""
    layer = re.compile(rf"{re.escape(path)}\.(\d+)\.")
    found = set()
    for key, target in names.items():
        number = layer.match(target) if target in known else None
        if number is not None:
            place = re.match(rf"((?:[^.]+\.)*?){number.group(1)}\.", key)
            found.add(place.group(1).removesuffix(".") if place else "")
    if len(found) != 1 or "" in found:
        places = ", ".join(sorted(found)) or "no name"
        raise PlanError(f"The files keep the layers under {places}, not under one name; prune without --stream.")
    return found.pop()


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in key.split(".")]


METHODS = ("fp8", "compressed-tensors", "gptq", "awq", "bitsandbytes", "mxfp4")
"""Methods whose files hold everything about a tensor under the tensor's own name."""
_REGEX = re.compile(r"^re:|[*\[(|\\^$+?]")


def prune_quantization(config: dict[str, Any], plan: PrunePlan, path: str) -> dict[str, Any]:
    """Return the quantisation config of the pruned checkpoint; `path` is that of the layers, e.g. `model.layers`.

    Raises PlanError for a method whose layout is not known here, or a field that could count layers in another way.
    """
    method = str(config.get("quant_method", "unknown"))
    if method not in METHODS:
        raise PlanError(
            f"The weights are quantised by {method!r}, whose files cannot be cut by name (quantization_config); "
            f"known are {', '.join(METHODS)}."
        )
    layers = path.rpartition(".")[2]
    found = _rewritten(config, "quantization_config", plan, re.compile(rf"(^|\.){re.escape(layers)}\.(\d+)(?=\.|$)"))
    assert isinstance(found, dict)
    return found


def _rewritten(value: Any, field: str, plan: PrunePlan, layer: re.Pattern[str]) -> Any:
    if isinstance(value, dict):
        names = {key: _renamed(str(key), field, plan, layer) for key in value}
        return {
            names[key]: _rewritten(item, f"{field}.{key}", plan, layer)
            for key, item in value.items()
            if names[key] is not None
        }
    if isinstance(value, list):
        if len(value) > 2 and all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            raise PlanError(f"The field {field} is a list of numbers that may count layers; this model cannot be cut.")
        kept = [_rewritten(item, field, plan, layer) for item in value]
        return [item for item, old in zip(kept, value, strict=True) if item is not None or old is None]
    return _renamed(value, field, plan, layer) if isinstance(value, str) else value


def _renamed(text: str, field: str, plan: PrunePlan, layer: re.Pattern[str]) -> str | None:
    """Return the name with the layer's new number; None where the layer is gone."""
    if _REGEX.search(text):
        if re.search(r"(layers|blocks|\bh)\W{0,4}[\[(]?\d", text):
            raise PlanError(
                f"The field {field} names layers by the pattern {text!r}, which cannot be rewritten; choose another "
                "checkpoint of this model."
            )
        return text
    found = layer.search(text)
    if found is None:
        return text
    number = int(found.group(2))
    if number not in plan.kept:
        return None
    return text[: found.start(2)] + str(plan.kept.index(number)) + text[found.end(2) :]


_CHUNK = 16 * 1024 * 1024
_ORDER = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E4M3", "F8_E8M0", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "F6_E3M2", "F6_E2M3", "F4", "BOOL"),
)
"""How the safetensors library orders tensors: wide dtypes first, so that every one is aligned."""


def write_shard(path: Path, tensors: Mapping[str, Entry], written: Callable[[int], None]) -> None:
    """Write one file of tensors that lie in other files, as safetensors would; `written` is told of every piece."""
    ordered = sorted(tensors.items(), key=lambda item: (_ORDER.index(item[1].dtype), item[0]))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, entry in ordered:
        end = offset + entry.num_bytes
        entries[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as target, ExitStack() as files:
        target.write(len(text).to_bytes(8, "little") + text)
        target.flush()
        sources = {f: files.enter_context(f.open("rb")).fileno() for f in {e.file for e in tensors.values()}}
        for _, entry in ordered:
            _copy(sources[entry.file], entry, target.fileno(), written)


def _copy(source: int, entry: Entry, target: int, written: Callable[[int], None]) -> None:
    """Copy a tensor's bytes inside the kernel; by hand where it cannot (another kind of disk)."""
    done, by_kernel = 0, hasattr(os, "copy_file_range")
    while done < entry.num_bytes:
        count = min(_CHUNK, entry.num_bytes - done)
        try:
            copied = os.copy_file_range(source, target, count, entry.start + done) if by_kernel else 0
        except OSError:
            copied, by_kernel = 0, False
        if not copied:
            piece = os.pread(source, count, entry.start + done)
            if not piece:  # cut short since its header was read
                raise ModelError(f"The file {entry.file} ends before its last tensor does; fetch it again.")
            copied = os.write(target, piece)
        done += copied
        written(copied)


def export_streamed(
    model: ModelRef | ResolvedModel,
    plan_for: Callable[[int], PrunePlan],
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    watch: Watch = NO_WATCH,
) -> ExportReport:
    """Return the report of a pruned checkpoint, copied tensor by tensor from the files of `model`.

    `plan_for` makes the plan from the number of layers. The dtype is that of the files, whatever was asked for.
    Progress stages: `write`, then those of the proof. Whatever goes wrong, nothing stays behind.

    Raises what `export_checkpoint` raises; PlanError too where a quantisation config or the names in the files cannot
    be rewritten (the field is named).
    """
    started = time.perf_counter()
    target = check_target(Path(folder))
    with open_source(model, watch=watch) as source:
        plan = plan_for(source.info.num_layers)
        pruned = _pruned(source, plan)
        kept = kept_tensors(source.model, source.name, source.entries, plan, quantised=source.quantised is not None)
        num_bytes = sum(entry.num_bytes for entry in kept.tensors.values())
        pruned = replace(pruned, info=replace(pruned.info, bytes=num_bytes))
        needed = num_bytes + TEXT_FILES_BYTES
        check_space(target, needed)
        with filled_beside(target) as room, ThreadPoolExecutor(max_workers=1) as hasher:
            checkpoint = room / "checkpoint"
            try:
                # The configs first: save_pretrained would take our weight files for leftovers of an earlier save.
                notes = kept.notes + _write_configs(source, pruned, checkpoint, plan, kept.path)
                layout = _write_weights(kept.tensors, checkpoint, shard_bytes, pruned.info.parameters, watch)
                # Hashing takes longer than copying; it goes on while the copy is proved.
                hashes = {name: hasher.submit(sha256, checkpoint / name) for name in layout}
                save_tokenizer(pruned, checkpoint)
                proved = _prove(source, pruned, kept, checkpoint, room, watch)
                facts = CardFacts(
                    name=target.name,
                    base=source.info,
                    pruned=pruned.info,
                    plan=plan,
                    text=None,
                    evaluation=None,
                    proof=dict(proved.facts),
                    notes=notes,
                )
                files = write_card(checkpoint, facts, {name: found.result() for name, found in hashes.items()})
            except (OSError, SafetensorError) as error:
                raise write_error(error, target, needed) from error
            watch.check(EXPORT_STOPPED)
            move_into_place(checkpoint, target)
    return ExportReport(
        folder=str(target),
        removed=plan.removed,
        kept=plan.kept,
        parameters=pruned.info.parameters,
        bytes=num_bytes,
        files=files,
        max_logit_diff=proved.max_logit_diff,
        generation_equal=proved.generation_equal,
        seconds=time.perf_counter() - started,
        proof=proved.kind,
    )


def _pruned(source: CheckpointSource, plan: PrunePlan) -> ModelHandle:
    """Return the pruned model on meta, with the generation config of the files."""
    config = pruned_config(source.model.config, plan)
    model = empty_model(source.model, config).to(DTYPES[source.ref.dtype])
    if (source.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source.folder)
    info = pruned_info(source.info, model, plan)
    return ModelHandle(model=model, tokenizer=source.tokenizer, info=info, ref=source.ref, plan=plan)


def _write_configs(
    source: CheckpointSource, pruned: ModelHandle, checkpoint: Path, plan: PrunePlan, path: str
) -> tuple[str, ...]:
    stock, notes = stock_copy(pruned.model)
    if source.quantised is not None:
        stock.config.quantization_config = prune_quantization(dict(source.quantised), plan, path)
    with load.quiet_transformers():
        stock.save_pretrained(checkpoint, state_dict={})  # no weights: the configs alone
    return notes


def _write_weights(
    tensors: Mapping[str, Entry], checkpoint: Path, shard_bytes: int, parameters: int, watch: Watch
) -> Iterable[str]:
    """Return the names of the files written, filled in order up to `shard_bytes` as transformers does; and an index."""
    total, done = sum(entry.num_bytes for entry in tensors.values()), 0

    def written(count: int) -> None:
        nonlocal done
        watch.check(EXPORT_STOPPED)
        done += count
        watch.tell("write", done=done, total=total, unit="bytes")

    layout = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda entry: entry.num_bytes,
        filename_pattern=WEIGHTS.replace(".", "{suffix}.", 1),
        max_shard_size=shard_bytes,
    )
    for file, names in layout.filename_to_tensors.items():
        write_shard(checkpoint / file, {name: tensors[name] for name in names}, written)
    if layout.is_sharded:
        index = {
            "metadata": {"total_parameters": parameters, "total_size": total},
            "weight_map": layout.tensor_to_filename,
        }
        (checkpoint / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return layout.filename_to_tensors


def _prove(
    source: CheckpointSource, pruned: ModelHandle, kept: KeptTensors, checkpoint: Path, room: Path, watch: Watch
) -> Proved:
    if source.opened is None:
        return prove_bytes(kept.tensors, checkpoint, watch)
    return prove_logits(source.opened, pruned, checkpoint, room, watch=watch)
