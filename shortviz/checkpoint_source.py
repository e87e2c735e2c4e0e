"""A checkpoint that is to be cut file to file: its config, the names of its tensors, and the model on meta."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from shortviz import hub, loading
from shortviz.architectures import num_layers, refuse_unsupported
from shortviz.errors import ModelError, PlanError
from shortviz.model_files import ModelFiles, find_files, read_config, wanted_names
from shortviz.model_info import model_info
from shortviz.placement import DTYPES
from shortviz.progress import NO_WATCH, Watch
from shortviz.records import ModelInfo, ModelRef
from shortviz.shards import Entry, read_shards
from shortviz.sizes import parse_config, settle_gguf
from shortviz.streamed_model import StreamedModel, open_streamed

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
def open_source(ref: ModelRef, *, watch: Watch = NO_WATCH) -> Iterator[CheckpointSource]:
    """Yield the checkpoint, downloaded if need be; raises what `load` raises, but for quantised weights."""
    files = settle_gguf(find_files(ref))
    if files.gguf is not None:
        raise ModelError(f"{files.name} is a GGUF file not used before; measure it once, which de-quantises it.")
    fields = read_config(files, quantised=True)
    quantised = fields.pop("quantization_config", None)
    if (fields.get("text_config") or {}).get("quantization_config"):
        raise PlanError(f"The field text_config.quantization_config of {files.name} cannot be rewritten.")
    config = parse_config(files.name, fields)
    refuse_unsupported(config)
    if files.hub is not None:
        hub.download(files.hub, wanted_names(files), watch)
        files = settle_gguf(find_files(ref))
    folder = _folder(files)
    entries = read_shards(folder, files.name)
    ref = replace(ref, dtype=_dtype(config, entries), device="cpu")
    if quantised is not None:
        yield _quantised_source(files, folder, ref, config, entries, quantised)
        return
    with open_streamed(ref, watch=watch) as opened:
        opened.drop_non_layer_modules()
        yield CheckpointSource(
            name=files.name,
            folder=folder,
            ref=ref,
            model=opened.model,
            tokenizer=opened.tokenizer,
            info=opened.info,
            entries=entries,
            opened=opened,
        )


def _folder(files: ModelFiles) -> Path:
    if files.folder is not None:
        return files.folder
    assert files.hub is not None
    return hub.cached_folder(files.hub.repo, files.hub.commit)


def _quantised_source(
    files: ModelFiles,
    folder: Path,
    ref: ModelRef,
    config: PreTrainedConfig,
    entries: Mapping[str, Entry],
    quantised: Mapping[str, Any],
) -> CheckpointSource:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[ref.dtype])
    info = model_info(
        model,
        id=files.name,
        revision=files.revision,
        reason=f"Quantised by {quantised.get('quant_method', 'an unknown method')}; its files are cut, not run.",
        device="cpu",
        layer_cache_bytes=(0,) * num_layers(config),
    )
    tokenizer = loading.read_tokenizer(files.name, folder)
    return CheckpointSource(
        name=files.name,
        folder=folder,
        ref=ref,
        model=model,
        tokenizer=tokenizer,
        info=info,
        entries=entries,
        quantised=quantised,
    )


def _dtype(config: PreTrainedConfig, entries: Mapping[str, Entry]) -> str:
    """Return the dtype in which plain from_pretrained would load the files: the config's, else that of most weights."""
    stated = str(config.dtype or "").removeprefix("torch.")
    counted = Counter[str]()
    for entry in entries.values():
        counted[_FLOATS.get(entry.dtype, "")] += entry.num_bytes
    counted.pop("", None)
    return stated if stated in DTYPES else max(counted, key=lambda name: counted[name], default="float32")
