"""model_info: what a saved run needs to know of a live model."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from shortviz.architectures import illegal_blocks, layer_stack, num_layers, text_config
from shortviz.records import ModelInfo
from shortviz.spreading import devices_of


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
