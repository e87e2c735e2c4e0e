"""load and estimate: ModelRef -> ModelHandle, from a hub id, a checkpoint folder, a .gguf file or `demo`."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from shortviz.errors import ModelError, NumericsError, ResourceError, is_out_of_memory
from shortviz.model import files as hub
from shortviz.model import gguf
from shortviz.model.files import (
    ModelFiles,
    find_files,
    read_config,
    read_json,
    refuse_remote_code,
    refuse_without_tokenizer,
    wanted_names,
    weight_names,
)
from shortviz.model.handle import ModelHandle
from shortviz.model.headers import GgufHeader, read_gguf_header, safetensors_parameters, untied_message
from shortviz.model.layers import illegal_blocks, layer_stack, num_layers, refuse_unsupported, text_config
from shortviz.model.placement import Placement, choose_placement
from shortviz.model.spread import devices_of, refuse_offloaded
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import size
from shortviz.records.model import ModelEstimate, ModelInfo, ModelRef

# model_info: what a saved run needs to know of a live model.


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
    sizes = [weight_size(layer) for layer in stack.layers]
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
        hidden_size=int(text.hidden_size),
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


def _layer_cache_bytes(model: PreTrainedModel, count: int) -> tuple[int, ...]:
    """Return by how many bytes each layer's keys and values grow from one token to two; 0 for a fixed-size state."""
    one, two = (_cache_sizes(model, length, count) for length in (1, 2))
    return tuple(max(b - a, 0) for a, b in zip(one, two, strict=True))


@torch.no_grad()
def _cache_sizes(model: PreTrainedModel, length: int, count: int) -> list[int]:
    tokens = torch.zeros((1, length), dtype=torch.long, device=model.device)
    output = model(input_ids=tokens, use_cache=True)
    layers = getattr(getattr(output, "past_key_values", None), "layers", ())
    sizes = [_tensor_bytes(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
    return (sizes + [0] * count)[:count]


def _tensor_bytes(*tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


# What loading a model would cost, from its config and weight headers alone.


def estimate_files(files: ModelFiles, placement: Placement) -> ModelEstimate:
    """Return the size of a model; nothing large is downloaded or read.

    Raises:
        ModelError: For every model that is refused by its config, file list or weight headers.
        ResourceError: Where the hub does not answer, or a GGUF file is too large to be de-quantised here.
    """
    if files.gguf is not None:
        header = read_gguf_header(files.gguf)
        if header.num_layers < 2:
            raise ModelError(f"{files.name} has {header.num_layers} layer; choose a model of at least 2.")
        gguf.check_memory(files.gguf, header)
        architecture, layers, parameters, download = _gguf_class(header), header.num_layers, header.parameters, 0
    else:
        config = parse_config(files.name, read_config(files))
        refuse_unsupported(config)
        weights = weight_names(files)
        refuse_without_tokenizer(files)
        architecture, layers = causal_class(config), num_layers(config)
        parameters = _count_parameters(files, weights)
        download = hub.missing_bytes(files.hub, wanted_names(files)) if files.hub else 0
    return ModelEstimate(
        id=files.name,
        revision=files.revision,
        architecture=architecture,
        num_layers=layers,
        parameters=parameters,
        download_bytes=download,
        memory_bytes=parameters * placement.dtype.itemsize,
        available_bytes=placement.free_memory,
        dtype=placement.dtype_name,
        device=placement.device_name,
        reason=f"{placement.reason} {files.note}".strip(),
    )


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
        config: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict(fields)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The config.json of {name} is not valid for {kind}: {reason}.") from error
    return config


def causal_class(config: PreTrainedConfig) -> str:
    """Return the name of the class that transformers loads for causal language modelling."""
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type))


def _gguf_class(header: GgufHeader) -> str:
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(header.architecture, header.architecture))


def _count_parameters(files: ModelFiles, weights: tuple[str, ...]) -> int:
    if files.hub is not None:
        return hub.safetensors_parameters(files.hub, weights)
    assert files.folder is not None
    return sum(safetensors_parameters(files.folder / name) for name in weights)


def settle_gguf(files: ModelFiles) -> ModelFiles:
    """Return the files, with the de-quantised copy's folder in place of a GGUF file where that copy exists."""
    if files.gguf is None:
        return files
    folder = gguf.whole_copy(files.gguf)
    return files if folder is None else ModelFiles(name=files.name, folder=folder)


OLD_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias)$")
"""Constants that old versions of transformers saved among the weights; models compute them now."""
_STOPPED = "Loading was stopped."


def estimate(ref: ModelRef) -> ModelEstimate:
    """Return what loading the model would cost, from its config and weight headers alone.

    Raises:
        ModelError: Where there is no such model, or it is of a kind that is refused.
        ResourceError: Where the hub is needed and does not answer.
    """
    placement = choose_placement(ref)
    return estimate_files(settle_gguf(find_files(ref)), placement)


def load(ref: ModelRef, *, watch: Watch = NO_WATCH) -> ModelHandle:
    """Return the loaded model, in eval mode and without gradients, with its tokenizer.

    Progress has the stages `download` (bytes), `de-quantise` (steps) and `load` (bytes). A stop is heard between
    files and stages.

    Raises:
        ModelError: Where there is no such model, it is of a kind that is refused, or its files are broken.
        NumericsError: Where a weight is NaN or infinite.
        ResourceError: Where memory or disk is too small, or the hub does not answer.
        Stopped: Where a stop was asked for.
    """
    placement = choose_placement(ref)
    files = settle_gguf(find_files(ref))
    expected = estimate_files(files, placement)
    refuse_too_large(expected)
    watch.check(_STOPPED)
    folder = fetch(files, expected, watch)
    watch.check(_STOPPED)
    total = expected.memory_bytes
    _report(watch, 0, total, "reading the weights")
    tokenizer = read_tokenizer(files.name, folder)
    with no_memory_left(expected):
        model = _read_model(files.name, folder, placement)
        _refuse_untied(files.name, model)
        refuse_not_finite(model)
    refuse_larger_vocabulary(files.name, tokenizer, model)
    watch.check(_STOPPED)
    info = model_info(model, id=files.name, revision=files.revision, reason=expected.reason)
    _report(watch, total, total, "")
    return ModelHandle(model=model, tokenizer=tokenizer, info=info, ref=ref)


def prepare(ref: ModelRef, *, watch: Watch = NO_WATCH) -> Path:
    """Return a local folder with the model's checkpoint, downloaded or de-quantised where it was not there yet.

    Raises what `load` raises before it reads weights.
    """
    files = settle_gguf(find_files(ref))
    return fetch(files, estimate_files(files, choose_placement(ref)), watch)


def fetch(files: ModelFiles, expected: ModelEstimate, watch: Watch) -> Path:
    """Return a local folder with the checkpoint: downloaded, de-quantised, or the one that was given."""
    if files.hub is not None:
        gguf.check_disk(Path(constants.HF_HUB_CACHE), expected.download_bytes, f"Downloading {files.name}")
        return hub.download(files.hub, wanted_names(files), watch)
    if files.gguf is not None:
        folder = gguf.copy_folder(files.gguf)
        return gguf.make_copy(files.gguf, folder, read_gguf_header(files.gguf), watch)
    assert files.folder is not None
    return files.folder


def read_tokenizer(name: str, folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a checkpoint folder; raises ModelError where it cannot be read or brings code."""
    if (folder / "tokenizer_config.json").is_file():
        options = read_json(folder / "tokenizer_config.json")
        refuse_remote_code(name, "tokenizer_config.json", options if isinstance(options, dict) else {})
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise ModelError(f"The tokenizer of {name} cannot be read ({_first_line(error)}); fetch it again.") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _read_model(name: str, folder: Path, placement: Placement) -> PreTrainedModel:
    config = parse_config(name, read_config(ModelFiles(name=name, folder=folder)))
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
            )
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"transformers cannot load {name} ({_first_line(error)}); choose another model.") from error
    refuse_disagreement(name, info)
    if placement.spread:
        refuse_offloaded(name, model)
    assert isinstance(model, PreTrainedModel)
    return model.eval().requires_grad_(False)


def refuse_disagreement(name: str, info: dict[str, Any]) -> None:
    """Raise ModelError where the weights are not exactly the ones that the config describes."""
    unexpected = sorted(key for key in info["unexpected_keys"] if not OLD_BUFFERS.search(key))
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


def refuse_not_finite(model: PreTrainedModel) -> None:
    """Raise NumericsError where a weight is NaN or infinite, naming the layer and the tensor."""
    refuse_not_finite_among(model.named_parameters(), layer_stack(model).path)


def refuse_not_finite_among(weights: Iterable[tuple[str, torch.Tensor]], path: str) -> None:
    """Raise NumericsError where one of the named weights is NaN or infinite; `path` is that of the layer list."""
    for name, weight in weights:
        # One cheap pass first: a sum is finite unless a term is not, or it overflows.
        if bool(torch.isfinite(weight.sum())) or bool(torch.isfinite(weight).all()):
            continue
        found = re.match(rf"{re.escape(path)}\.(\d+)\.", name)
        where = f"Layer {found.group(1)}" if found else "A part outside the layers"
        raise NumericsError(f"{where} has NaN or Inf among its weights ({name}); get a sound copy of the model.")


def refuse_larger_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Raise ModelError where the tokenizer has ids for which the model has no embedding."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        raise ModelError(
            f"The tokenizer of {name} has token ids up to {highest} and the model embeddings for 0-{rows - 1}; "
            "get both from the same place."
        )


@contextmanager
def no_memory_left(expected: ModelEstimate) -> Iterator[None]:
    """Turn running out of memory inside into a ResourceError."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"The memory of {expected.device} ran out while {expected.id} was being loaded in {expected.dtype}; close "
            "something, or choose a smaller model or dtype."
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars and load reports off stderr: refusals say what matters."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line[:300].rstrip(".")


def _report(watch: Watch, done: float, total: float, detail: str) -> None:
    watch.tell("load", done=done, total=total, unit="bytes", detail=detail)
