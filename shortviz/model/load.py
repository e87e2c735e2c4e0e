"""Loading: a hub id, a checkpoint folder, a .gguf file or `demo` becomes a live model with its tokenizer."""

import copy
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from shortviz.errors import ModelError, NumericsError, ResourceError, first_line, is_out_of_memory, memory_told
from shortviz.model.config import without_machine_fields
from shortviz.model.files import (
    ModelFiles,
    check_disk,
    download,
    find_files,
    read_config,
    refuse_without_tokenizer,
    remote_tensors,
    wanted_names,
    weight_names,
)
from shortviz.model.gguf import copies as gguf
from shortviz.model.gguf.container import Gguf
from shortviz.model.handle import ModelHandle
from shortviz.model.headers import safetensors_header, untied_message
from shortviz.model.layers import (
    illegal_blocks,
    layer_stack,
    num_layers,
    packed_weights,
    refuse_unsupported,
    stream_width,
    text_config,
)
from shortviz.model.placement import Placement, choose_placement, devices_of, refuse_offloaded
from shortviz.model.tokenizer import read_tokenizer, refuse_larger_vocabulary
from shortviz.model.unread import OLD_BUFFERS, differing_files, head_pattern, unread_files, unread_tensors
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import size
from shortviz.records.model import ModelEstimate, ModelInfo, ModelRef

_STOPPED = "Loading was stopped."
_NOWHERE = "no-adapter-is-looked-for"
"""Where transformers looks for an adapter, which it would put into the model unasked: one beside the weights is not."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ResolvedModel:
    """What a ModelRef means now: files, headers and config, looked up once, to be shown and then loaded or streamed."""

    ref: ModelRef
    files: ModelFiles
    placement: Placement
    parameters: int
    config: PreTrainedConfig | None = None
    """Of safetensors."""
    header: Gguf | None = None
    """Of a GGUF file that was not de-quantised yet."""
    wanted: tuple[str, ...] = ()
    """What is downloaded of a hub model."""
    quantised: Mapping[str, Any] | None = None
    """The quantisation config, which was taken out of `config`; None for plain weights."""
    left_out: tuple[str, ...] = ()
    """What of the source is not read, in sentences: it is said before loading, and kept with what is measured."""

    @property
    def estimate(self) -> ModelEstimate:
        """What loading the model would cost."""
        if self.header is not None:
            kind, layers = self.header.architecture, self.header.num_layers
        else:
            assert self.config is not None
            kind, layers = self.config.model_type, num_layers(self.config)
        return ModelEstimate(
            id=self.files.name,
            revision=self.files.revision,
            architecture=str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, kind)),
            num_layers=layers,
            parameters=self.parameters,
            download_bytes=self.files.missing(self.wanted),
            memory_bytes=self.parameters * self.placement.dtype.itemsize,
            available_bytes=self.placement.free_memory,
            dtype=self.placement.dtype_name,
            device=self.placement.device_name,
            reason=f"{self.placement.reason} {self.files.note}".strip(),
            left_out=self.left_out,
        )


def resolve(model: ModelRef | ResolvedModel, *, quantised: bool = False, watch: Watch = NO_WATCH) -> ResolvedModel:
    """Return what a reference means now (what is resolved already, as it is); nothing large is downloaded or read.

    `quantised` takes weights that cannot be run. Raises what `estimate` raises, and Stopped.
    """
    if isinstance(model, ResolvedModel):
        return model
    placement, files = choose_placement(model), find_files(model)
    watch.check(_STOPPED)
    if files.gguf is not None:
        copied = gguf.whole_copy(files.gguf)
        if copied is None:
            return _resolved_gguf(model, files, placement, files.gguf)
        files = ModelFiles(name=files.name, folder=copied)
    fields = read_config(files, quantised=quantised)
    scales = fields.pop("quantization_config", None) if quantised else None
    config = parse_config(files.name, fields)
    refuse_unsupported(config)
    weights = weight_names(files)
    refuse_without_tokenizer(files)
    watch.check(_STOPPED)
    on_hub = files.folder is None
    tensors = remote_tensors(files, weights) if on_hub else _local_tensors(files, weights)
    with quiet_transformers():
        unread = unread_tensors(config, tensors, quantised=scales is not None)
    return ResolvedModel(
        ref=model,
        files=files,
        placement=placement,
        parameters=sum(elements for key, elements in tensors.items() if key not in unread),
        config=config,
        wanted=wanted_names(files, weights) if on_hub else (),
        quantised=scales,
        left_out=(*unread_files(files, weights), *dict.fromkeys(unread.values())),
    )


def _local_tensors(files: ModelFiles, weights: tuple[str, ...]) -> dict[str, int]:
    """Return the tensors in local files, {name: elements}; raises ModelError where one is not whole."""
    headers = (safetensors_header(files.path(name)) for name in weights)
    return {key: math.prod(entry.shape) for header in headers for key, entry in header.items()}


def _resolved_gguf(ref: ModelRef, files: ModelFiles, placement: Placement, path: Path) -> ResolvedModel:
    header = gguf.read_model(path)
    gguf.check_memory(path, header)
    return ResolvedModel(ref=ref, files=files, placement=placement, parameters=header.parameters, header=header)


def estimate(model: ModelRef | ResolvedModel) -> ModelEstimate:
    """Return what loading the model would cost, from its config and weight headers alone.

    Raises:
        ModelError: Where there is no such model, or it is of a kind that is refused by its config, files or headers.
        ResourceError: Where the hub does not answer, or a GGUF file is too large to be de-quantised here.
    """
    return resolve(model).estimate


def load(model: ModelRef | ResolvedModel, *, watch: Watch = NO_WATCH) -> ModelHandle:
    """Return the loaded model, in eval mode and without gradients, with its tokenizer.

    Progress has the stages `download` (bytes), `de-quantise` (steps) and `load` (bytes). A stop is heard between
    files and stages.

    Raises:
        ModelError: Where there is no such model, it is of a kind that is refused, or its files are broken.
        NumericsError: Where a weight is NaN or infinite.
        ResourceError: Where memory or disk is too small, or the hub does not answer.
        Stopped: Where a stop was asked for.
    """
    resolved = resolve(model, watch=watch)
    name, expected = resolved.files.name, resolved.estimate
    refuse_too_large(expected)
    say(resolved.left_out, watch)
    watch.check(_STOPPED)
    folder, config = fetch(resolved, watch)
    watch.check(_STOPPED)
    total = expected.memory_bytes
    watch.tell("load", done=0, total=total, unit="bytes", detail="reading the weights")
    tokenizer = read_tokenizer(name, folder)
    disagree = say(told_after_fetching(resolved, folder), watch)
    with no_memory_left(expected):
        loaded = _read_model(name, folder, config, resolved.placement)
        _refuse_untied(name, loaded)
        refuse_not_finite(loaded.named_parameters(), layer_stack(loaded).path)
    refuse_larger_vocabulary(name, tokenizer, loaded)
    watch.check(_STOPPED)
    info = model_info(loaded, id=name, revision=expected.revision, reason=expected.reason)
    info = replace(info, left_out=(*resolved.left_out, *disagree))
    watch.tell("load", done=total, total=total, unit="bytes")
    return ModelHandle(model=loaded, tokenizer=tokenizer, info=info, ref=resolved.ref, folder=folder)


def prepare(model: ModelRef | ResolvedModel, *, watch: Watch = NO_WATCH) -> Path:
    """Return a local folder with the model's checkpoint, downloaded or de-quantised where it was not there yet.

    Raises what `load` raises before it reads weights.
    """
    return fetch(resolve(model, watch=watch), watch)[0]


def fetch(resolved: ResolvedModel, watch: Watch) -> tuple[Path, PreTrainedConfig]:
    """Return a local folder with the checkpoint (downloaded, de-quantised, or as given), and a config to change."""
    files = resolved.files
    if resolved.config is None:
        assert files.gguf is not None
        assert resolved.header is not None
        folder = gguf.make_copy(files.gguf, gguf.copy_folder(files.gguf), resolved.header, watch)
        return folder, parse_config(files.name, read_config(ModelFiles(name=files.name, folder=folder)))
    config = copy.deepcopy(resolved.config)  # transformers writes the dtype into it
    if files.folder is not None:
        return files.folder, config
    check_disk(Path(constants.HF_HUB_CACHE), files.missing(resolved.wanted), f"Downloading {files.name}")
    return download(files, resolved.wanted, watch), config


def told_after_fetching(resolved: ResolvedModel, folder: Path) -> tuple[str, ...]:
    """Return what second sources of a model of the hub disagree about, which `left_out` could not say before."""
    return differing_files(resolved.files.name, folder) if resolved.files.repo is not None else ()


def say(sentences: tuple[str, ...], watch: Watch) -> tuple[str, ...]:
    """Tell what of the source will not be read, and return it."""
    for sentence in sentences:
        watch.say(sentence)
    return sentences


def refuse_too_large(estimate: ModelEstimate) -> None:
    """Raise ResourceError where the model would not fit in the memory that is free now."""
    if not estimate.fits:
        raise ResourceError(
            f"{estimate.id} needs {size(estimate.memory_bytes * 1.2)} of memory in {estimate.dtype} (weights "
            f"and a fifth more), and {size(estimate.available_bytes)} is free on {estimate.device}; choose a "
            "smaller model or dtype."
        )


def parse_config(name: str, fields: dict[str, Any]) -> PreTrainedConfig:
    """Return the transformers config; raises ModelError where the model type is unknown or a field is wrong."""
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ModelError(
            f"The config.json of {name} has model type {kind!r}, which this version of transformers does not know; "
            "choose another model."
        )
    try:
        config: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict(without_machine_fields(fields))
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The config.json of {name} is not valid for {kind}: {reason}.") from error
    return config


def _read_model(name: str, folder: Path, config: PreTrainedConfig, placement: Placement) -> PreTrainedModel:
    whole = None if placement.device.type == "cpu" else {"": placement.device}
    try:
        with quiet_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=placement.dtype,
                device_map="auto" if placement.spread else whole,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # told by the loading info, and refused below by name
                output_loading_info=True,
                adapter_kwargs={"subfolder": _NOWHERE},
            )
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"transformers cannot load {name} ({first_line(error)}); choose another model.") from error
    refuse_disagreement(name, info, config)
    if placement.spread:
        refuse_offloaded(name, model)
    assert isinstance(model, PreTrainedModel)
    return model.eval().requires_grad_(False)


def refuse_disagreement(name: str, info: dict[str, Any], config: PreTrainedConfig) -> None:
    """Raise ModelError where the weights are not the ones that the config describes; prediction heads may be there."""
    heads = head_pattern(config)
    unexpected = sorted(key for key in info["unexpected_keys"] if not OLD_BUFFERS.search(key) and not heads.search(key))
    kinds = (
        ("lack", sorted(info["missing_keys"]), "which it describes"),
        ("hold", unexpected, "which it does not describe"),
        ("have another shape of", sorted(entry[0] for entry in info["mismatched_keys"]), "than it describes"),
    )
    found = next(((verb, keys, what) for verb, keys, what in kinds if keys), None)
    if found:
        verb, keys, what = found
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        raise ModelError(
            f"The weights of {name} do not fit its config.json: they {verb} {keys[0]}{more}, {what}; "
            "get both from the same place."
        )


def _refuse_untied(name: str, model: PreTrainedModel) -> None:
    """Raise ModelError where weights that the config ties were different, so that transformers did not tie them.

    A cut of such a model, and its export, would be tied again.
    """
    asked = model.get_expanded_tied_weights_keys(all_submodels=True)
    untied = sorted(asked.keys() - model.all_tied_weights_keys.keys())
    if untied:
        raise ModelError(untied_message(name, untied[0], asked[untied[0]]))


def refuse_not_finite(weights: Iterable[tuple[str, torch.Tensor]], path: str) -> None:
    """Raise NumericsError where one of the named weights is NaN or infinite; `path` is that of the layer list."""
    for name, weight in weights:
        # One cheap pass first: a sum is finite unless a term is not, or it overflows.
        if bool(torch.isfinite(weight.sum())) or bool(torch.isfinite(weight).all()):
            continue
        found = re.match(rf"{re.escape(path)}\.(\d+)\.", name)
        where = f"Layer {found.group(1)}" if found else "A part outside the layers"
        raise NumericsError(f"{where} has NaN or Inf among its weights ({name}); get a sound copy of the model.")


def no_memory_left(expected: ModelEstimate) -> AbstractContextManager[None]:
    """Turn running out of memory inside into a ResourceError."""
    return memory_told(
        lambda: (
            f"The memory of {expected.device} ran out while {expected.id} was being loaded in {expected.dtype}; close "
            "something, or choose a smaller model or dtype."
        )
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars and load reports off stderr: refusals say what matters.

    Raises ModelError where building a model takes a package that is not here, as Gemma 3n's part for pictures does.
    """
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except ImportError as error:
        reason = first_line(error).partition(". ")[0]
        raise ModelError(f"This model takes a package that is not installed ({reason}); install it.") from error
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def model_info(
    model: PreTrainedModel,
    *,
    id: str,
    revision: str | None,
    reason: str,
    device: str | None = None,
    layer_cache_bytes: tuple[int, ...] | None = None,
) -> ModelInfo:
    """Return the facts of a model: sizes in parameters and bytes (tied weights once), cache bytes, illegal blocks.

    Runs two forward passes, of one and of two tokens, to measure the cache, where `layer_cache_bytes` is not given.

    Raises:
        ModelError: the decoder layers cannot be found.
    """
    stack = layer_stack(model)
    text = text_config(model.config)
    packed = [(w.numel() // len(stack.layers), w.element_size()) for w in packed_weights(model)]
    in_tables = sum(count for count, _ in packed), sum(count * size for count, size in packed)
    sizes = [tuple(map(sum, zip(weight_size(layer), in_tables, strict=True))) for layer in stack.layers]
    parameters, num_bytes = weight_size(model)
    return ModelInfo(
        id=id,
        revision=revision,
        architecture=type(model).__name__,
        num_layers=num_layers(model.config),
        parameters=parameters,
        dtype=str(model.dtype).removeprefix("torch."),
        device=device or ", ".join(map(str, devices_of(model))),
        reason=reason,
        bytes=num_bytes,
        hidden_size=stream_width(model.config),
        vocab_size=int(text.vocab_size),
        context_length=context_length(text),
        layer_parameters=tuple(count for count, _ in sizes),
        layer_bytes=tuple(size for _, size in sizes),
        layer_cache_bytes=layer_cache_bytes or _layer_cache_bytes(model, len(stack.layers)),
        illegal=illegal_blocks(model.config),
    )


def weight_size(module: nn.Module) -> tuple[int, int]:
    """Return (parameters, bytes) of a module; a tied weight counts once."""
    weights = list(module.parameters())
    return sum(w.numel() for w in weights), sum(w.numel() * w.element_size() for w in weights)


def context_length(text: Any) -> int | None:
    """Return how many tokens a model takes, from its text config; None where that does not say."""
    for name in ("max_position_embeddings", "max_seq_len", "seq_length"):
        length = getattr(text, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return None


@torch.no_grad()
def _layer_cache_bytes(model: PreTrainedModel, count: int) -> tuple[int, ...]:
    """Return by how many bytes each layer's keys and values grow from one token to two; 0 for a fixed-size state."""
    found = []
    for length in (1, 2):
        tokens = torch.zeros((1, length), dtype=torch.long, device=model.device)
        output = model(input_ids=tokens, use_cache=True)
        sizes = [cache_bytes(layer) for layer in getattr(getattr(output, "past_key_values", None), "layers", ())]
        found.append((sizes + [0] * count)[:count])
    return tuple(max(b - a, 0) for a, b in zip(*found, strict=True))


def cache_bytes(layer: Any) -> int:
    """Return the bytes of the keys and values in one layer of a cache, or of None."""
    tensors = (getattr(layer, name, None) for name in ("keys", "values"))
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
