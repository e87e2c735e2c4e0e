"""What loading a model would cost, from its config and weight headers alone."""

from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from shortviz import gguf_cache, hub
from shortviz.architectures import num_layers, refuse_unsupported
from shortviz.errors import ModelError, ResourceError
from shortviz.model_files import ModelFiles, read_config, refuse_without_tokenizer, wanted_names, weight_names
from shortviz.placement import Placement
from shortviz.records import ModelEstimate
from shortviz.weight_files import GgufHeader, read_gguf_header, safetensors_parameters
from shortviz.words import size


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
        gguf_cache.check_memory(files.gguf, header)
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
    folder = gguf_cache.whole_copy(files.gguf)
    return files if folder is None else ModelFiles(name=files.name, folder=folder)
