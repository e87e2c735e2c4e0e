"""export_streamed: a pruned checkpoint written file to file, no layer ever in memory, dtype and bytes untouched.

The config goes by the same table as everywhere. The proof is the ordinary one where the short model fits in memory: a
fresh process, stock transformers. Where it does not, its files are streamed and compared with the original's, the
removed layers bypassed. Quantised weights cannot be run here; their proof is that every kept byte is the original's.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shortviz.errors import ModelError, PlanError
from shortviz.export.card import CardFacts
from shortviz.export.export import SHARD_BYTES, TEXT_FILES_BYTES, report_of, write_card
from shortviz.export.folder import check_target, filled_beside, move_into_place, write_error
from shortviz.export.proving import EXPORT_STOPPED
from shortviz.export.texts import write_texts
from shortviz.export.weights import FLOATS, KeptTensors, WrittenWeights, kept_tensors, write_weights
from shortviz.model import load
from shortviz.model.files import sha256
from shortviz.model.handle import ModelHandle
from shortviz.model.headers import Entry, read_shards
from shortviz.model.layers import num_layers, pruned_config
from shortviz.model.load import ResolvedModel, model_info
from shortviz.model.placement import DTYPES, choose_placement
from shortviz.model.prune import empty_model, pruned_info
from shortviz.model.tokenizer import read_tokenizer
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.measured import ExportReport
from shortviz.records.model import ModelInfo, ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.streaming.model import StreamedModel, open_streamed
from shortviz.streaming.proof import Proved, prove_bytes, prove_logits


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
    load.say(resolved.left_out, watch)
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
    tokenizer = read_tokenizer(name, folder)
    yield source(model=on_meta, tokenizer=tokenizer, info=info, quantised=resolved.quantised)


def _dtype(config: PreTrainedConfig, entries: Mapping[str, Entry]) -> str:
    """Return the dtype in which plain from_pretrained would load the files: the config's, else that of most weights."""
    stated = str(config.dtype or "").removeprefix("torch.")
    counted = Counter({"float32": 0})
    for entry in entries.values():
        if entry.dtype in FLOATS:
            counted[str(FLOATS[entry.dtype]).removeprefix("torch.")] += entry.num_bytes
    return stated if stated in DTYPES else counted.most_common(1)[0][0]


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
        quantised = source.quantised is not None
        kept = kept_tensors(source.model, source.name, source.entries, plan, cut=pruned.model, quantised=quantised)
        weights = WrittenWeights(tensors=kept.tensors, notes=_not_asked(model))
        pruned = replace(pruned, info=replace(pruned.info, bytes=weights.num_bytes))
        needed = weights.num_bytes + TEXT_FILES_BYTES
        with filled_beside(target, needed) as room, ThreadPoolExecutor(max_workers=1) as hasher:
            checkpoint = room / "checkpoint"
            try:
                checkpoint.mkdir()
                scales = None if source.quantised is None else dict(source.quantised)
                quantization = None if scales is None else prune_quantization(scales, plan, kept.path)
                notes = weights.notes + write_texts(pruned, checkpoint, quantization=quantization)
                layout = write_weights(kept.tensors, checkpoint, shard_bytes, pruned.info.parameters, watch)
                # Hashing takes longer than copying; it goes on while the copy is proved.
                hashes = {name: hasher.submit(sha256, checkpoint / name) for name in layout}
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
                    dtypes=weights.dtypes,
                )
                files = write_card(checkpoint, facts, {name: found.result() for name, found in hashes.items()})
            except (OSError, SafetensorError) as error:
                raise write_error(error, target, needed) from error
            watch.check(EXPORT_STOPPED)
            move_into_place(checkpoint, target)
    told = {"max_logit_diff": proved.max_logit_diff, "generation_equal": proved.generation_equal, "proof": proved.kind}
    return report_of(target, facts, files, started, told)


def _not_asked(model: ModelRef | ResolvedModel) -> tuple[str, ...]:
    """Return a sentence where another dtype was asked for than that of the files, which are only copied."""
    asked = (model.ref if isinstance(model, ResolvedModel) else model).dtype
    if asked == "auto":
        return ()
    return (f"The dtype {asked} was asked for and is not used: a streamed export copies tensors as they are stored.",)


def _pruned(source: CheckpointSource, plan: PrunePlan) -> ModelHandle:
    """Return the pruned model on meta, which is written in the dtype of its files."""
    config = pruned_config(source.model.config, plan)
    model = empty_model(source.model, config).to(DTYPES[source.ref.dtype])
    info, ref = pruned_info(source.info, model, plan), replace(source.ref, dtype="auto")
    return ModelHandle(model=model, tokenizer=source.tokenizer, info=info, ref=ref, folder=source.folder, plan=plan)


def _prove(
    source: CheckpointSource, pruned: ModelHandle, kept: KeptTensors, checkpoint: Path, room: Path, watch: Watch
) -> Proved:
    if source.opened is None:
        return prove_bytes(kept.tensors, checkpoint, watch)
    return prove_logits(source.opened, pruned, checkpoint, room, watch=watch)
