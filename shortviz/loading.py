"""load and estimate: ModelRef -> ModelHandle, from a hub id, a checkpoint folder, a .gguf file or `demo`."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from shortviz import gguf_cache, hub
from shortviz.architectures import layer_stack
from shortviz.errors import ModelError, NumericsError, ResourceError, is_out_of_memory
from shortviz.handle import ModelHandle
from shortviz.model_files import ModelFiles, find_files, read_config, read_json, refuse_remote_code, wanted_names
from shortviz.model_info import model_info
from shortviz.placement import Placement, choose_placement
from shortviz.progress import NO_WATCH, Watch
from shortviz.records import ModelEstimate, ModelRef
from shortviz.shards import untied_message
from shortviz.sizes import estimate_files, parse_config, refuse_too_large, settle_gguf
from shortviz.spreading import refuse_offloaded
from shortviz.weight_files import read_gguf_header

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
        gguf_cache.check_disk(Path(constants.HF_HUB_CACHE), expected.download_bytes, f"Downloading {files.name}")
        return hub.download(files.hub, wanted_names(files), watch)
    if files.gguf is not None:
        folder = gguf_cache.copy_folder(files.gguf)
        return gguf_cache.make_copy(files.gguf, folder, read_gguf_header(files.gguf), watch)
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
