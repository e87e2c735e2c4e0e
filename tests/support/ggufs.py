"""Tiny GGUF files of several families, written by gguf's own writer as llama.cpp's converter would write them."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import MODEL_ARCH, GGMLQuantizationType
from transformers import PreTrainedConfig

from tests.support.families import build_tiny, tiny_config, tiny_tokenizer

VOCAB_SIZE = 262
"""256 bytes, four special tokens, a merge, for llama.cpp wants one, and <mask>, which Gemma's tokenizer must have."""
Q8_0 = GGMLQuantizationType.Q8_0
Array = np.ndarray[Any, Any]

_SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "vocab_size": VOCAB_SIZE,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32},
    "qwen2": {"use_sliding_window": False, "layer_types": None, "sliding_window": None},
    # transformers takes 256 for the attention scale of every gemma3 GGUF file, whatever the head's size.
    "gemma3": {
        "head_dim": 256, "query_pre_attn_scalar": 256, "num_hidden_layers": 7, "layer_types": None, "hidden_size": 32,
        "intermediate_size": 32, "num_attention_heads": 1,
    },
    "lfm2": {"block_auto_adjust_ff_dim": False},
}  # fmt: skip
"""Fields on top of the common sizes, by llama.cpp's name of the architecture."""


def permuted(weight: Array, heads: int) -> Array:
    """Order the rows as llama.cpp does, which rotates neighbouring pairs where transformers rotates halves."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def config_of(architecture: str) -> PreTrainedConfig:
    """Return the tiny config of an architecture."""
    name = {"gemma3": "gemma3_text"}.get(architecture, architecture)
    return tiny_config(name, **_SIZES | CONFIGS[architecture])


def write_tiny(
    path: Path,
    architecture: str = "llama",
    *,
    kind: GGMLQuantizationType = Q8_0,
    keys: Callable[[gguf.GGUFWriter], object] | None = None,
    alignment: int | None = None,
    parts: int = 1,
) -> dict[str, torch.Tensor]:
    """Write a tiny model with its tokenizer, matrices in `kind`; return the weights as the file rounds them.

    `keys` adds some of its own to the header.
    """
    config = config_of(architecture)
    model = build_tiny(config.model_type, config=config)
    tensors, kept = {}, {}
    for name, weight in model.state_dict().items():
        new, values = _as_gguf(architecture, config, name, weight.numpy())
        small = values.ndim == 1 or "conv" in name
        tensors[new] = (values, GGMLQuantizationType.F32 if small else kind)
        kept[name] = weight if small else _rounded(weight.numpy(), kind)
    limit = -(-len(tensors) // parts) if parts > 1 else 0
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=limit)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    add_header(writer, config)
    if keys is not None:
        keys(writer)
    add_tokenizer(writer)
    finish(writer, tensors)
    return kept


def _as_gguf(architecture: str, config: PreTrainedConfig, name: str, weight: Array) -> tuple[str, Array]:
    """Return the name and values of a weight in the file."""
    names = gguf.get_tensor_name_map(
        next(arch for arch, found in gguf.MODEL_ARCH_NAMES.items() if found == architecture), config.num_hidden_layers
    )
    stem, _, suffix = name.rpartition(".")
    new = names.get_name(stem)
    assert new is not None, name
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = stem.rpartition(".")[2]
    if architecture == "llama" and part in heads:
        weight = permuted(weight, heads[part])
    if architecture == "gemma3" and part.endswith("norm"):
        weight = weight + 1
    if architecture == "lfm2" and part == "conv":
        weight = weight.squeeze(1)
    return f"{new}.{suffix}", np.ascontiguousarray(weight)


def _rounded(weight: Array, kind: GGMLQuantizationType) -> torch.Tensor:
    # Blocks run along the columns, so ordering rows commutes with rounding.
    return torch.from_numpy(gguf.dequantize(gguf.quantize(weight, kind), kind).copy())


def add_header(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    """Add the keys that llama.cpp reads."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(getattr(config, "rms_norm_eps", None) or config.norm_eps)
    writer.add_vocab_size(VOCAB_SIZE)
    if config.model_type == "lfm2":
        writer.add_shortconv_l_cache(config.conv_L_cache)
        kinds = [kind == "full_attention" for kind in config.layer_types]
        writer.add_head_count_kv([config.num_key_value_heads if attends else 0 for attends in kinds])
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """Add a byte-level tokenizer with its chat template."""
    vocab = {**tiny_tokenizer().get_vocab(), "ab": 260, "<mask>": 261}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocab, key=lambda token: vocab[token]))
    writer.add_token_types([1 if number < 256 or number == 260 else 3 for number in range(VOCAB_SIZE)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(vocab["<s>"])
    writer.add_eos_token_id(vocab["</s>"])
    writer.add_pad_token_id(vocab["<pad>"])
    writer.add_unk_token_id(vocab["<unk>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for message in messages %}{{ message.content }}{% endfor %}")


def finish(writer: gguf.GGUFWriter, tensors: Mapping[str, tuple[Array, GGMLQuantizationType]]) -> None:
    """Add the tensors, each in its type, and write the file."""
    for name, (values, kind) in tensors.items():
        if kind == GGMLQuantizationType.F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_openelm(path: Path, layers: Sequence[int] = tuple(range(5))) -> None:
    """Write those of five layers of a tiny OpenELM, each with heads and neurons of its own number."""
    heads, kv_heads, neurons = [4, 2, 6, 4, 2], [2, 1, 3, 1, 1], [64, 96, 32, 128, 64]
    rng, width, head = np.random.default_rng(0), 64, 16
    tensors: dict[str, tuple[Array, GGMLQuantizationType]] = {}

    def add(name: str, *shape: int) -> None:
        values = rng.normal(0, 0.2, shape).astype(np.float32)
        kind = GGMLQuantizationType.F32 if len(shape) == 1 else Q8_0
        number = re.match(r"blk\.(\d+)\.", name)
        if number is None:
            tensors[name] = (values, kind)
        elif int(number[1]) in layers:  # all are drawn, so that a layer is the same whichever are written
            place = layers.index(int(number[1]))
            tensors[f"blk.{place}.{name[number.end() :]}"] = (values + (len(shape) == 1), kind)

    add("token_embd.weight", VOCAB_SIZE, width)
    add("output_norm.weight", width)
    for number in range(5):
        add(f"blk.{number}.attn_norm.weight", width)
        add(f"blk.{number}.attn_qkv.weight", head * (heads[number] + 2 * kv_heads[number]), width)
        add(f"blk.{number}.attn_q_norm.weight", head)
        add(f"blk.{number}.attn_k_norm.weight", head)
        add(f"blk.{number}.attn_output.weight", width, head * heads[number])
        add(f"blk.{number}.ffn_norm.weight", width)
        add(f"blk.{number}.ffn_gate.weight", neurons[number], width)
        add(f"blk.{number}.ffn_up.weight", neurons[number], width)
        add(f"blk.{number}.ffn_down.weight", width, neurons[number])
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[MODEL_ARCH.OPENELM])
    writer.add_block_count(len(layers))
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length([neurons[number] for number in layers])
    writer.add_head_count([heads[number] for number in layers])
    writer.add_head_count_kv([kv_heads[number] for number in layers])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCAB_SIZE)
    add_tokenizer(writer)
    finish(writer, tensors)
