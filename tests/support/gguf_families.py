"""Tiny random GGUF files of families, written as llama.cpp wants them: tensors by hand, without transformers.

Some layers may be idle: their last matrices are zero, so they add nothing, and llama.cpp computes the same with them
as without.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType

from tests.support.ggufs import VOCAB_SIZE, add_tokenizer, finish

LAYERS, WIDTH, HEADS, GROUPS, HEAD, NEURONS, EXPERTS, CONTEXT, WINDOW = 8, 64, 4, 2, 16, 96, 4, 256, 4
INNER, STATE, RANK, KERNEL, STATE_HEADS = 128, 8, 4, 4, 4
Shapes = dict[str, tuple[int, ...]]


def _with_biases(shapes: Shapes) -> Shapes:
    biases = {name.replace("weight", "bias"): (*shape[:-2], shape[-2]) for name, shape in shapes.items() if shape[1:]}
    norms = {name.replace("weight", "bias"): shape for name, shape in shapes.items() if "norm" in name}
    return shapes | biases | norms


_NORM: Shapes = {"attn_norm.weight": (WIDTH,)}
_ATTENTION: Shapes = _NORM | {
    "attn_q.weight": (HEADS * HEAD, WIDTH), "attn_k.weight": (GROUPS * HEAD, WIDTH),
    "attn_v.weight": (GROUPS * HEAD, WIDTH), "attn_output.weight": (WIDTH, HEADS * HEAD),
}  # fmt: skip
_HEAD_NORMS: Shapes = {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
_WHOLE_NORMS: Shapes = {"attn_q_norm.weight": (HEADS * HEAD,), "attn_k_norm.weight": (GROUPS * HEAD,)}
_FUSED: Shapes = _NORM | {"attn_qkv.weight": (3 * WIDTH, WIDTH), "attn_output.weight": (WIDTH, WIDTH)}
_UP_DOWN: Shapes = {"ffn_up.weight": (NEURONS, WIDTH), "ffn_down.weight": (WIDTH, NEURONS)}
_GATED: Shapes = {"ffn_gate.weight": (NEURONS, WIDTH), **_UP_DOWN}
_FFN_NORM: Shapes = {"ffn_norm.weight": (WIDTH,)}
_POST: Shapes = {"post_attention_norm.weight": (WIDTH,)}
_EXPERTS: Shapes = {
    "ffn_gate_inp.weight": (EXPERTS, WIDTH), "ffn_gate_exps.weight": (EXPERTS, NEURONS, WIDTH),
    "ffn_up_exps.weight": (EXPERTS, NEURONS, WIDTH), "ffn_down_exps.weight": (EXPERTS, WIDTH, NEURONS),
}  # fmt: skip
_SHARED: Shapes = {
    "ffn_gate_inp_shexp.weight": (WIDTH,), "ffn_gate_shexp.weight": (NEURONS, WIDTH),
    "ffn_up_shexp.weight": (NEURONS, WIDTH), "ffn_down_shexp.weight": (WIDTH, NEURONS),
}  # fmt: skip
_LINEAR: Shapes = _NORM | {
    "attn_qkv.weight": (2 * 2 * STATE + STATE_HEADS * STATE, WIDTH), "attn_gate.weight": (STATE_HEADS * STATE, WIDTH),
    "ssm_conv1d.weight": (2 * 2 * STATE + STATE_HEADS * STATE, KERNEL), "ssm_dt.bias": (STATE_HEADS,),
    "ssm_a": (STATE_HEADS,), "ssm_beta.weight": (STATE_HEADS, WIDTH), "ssm_alpha.weight": (STATE_HEADS, WIDTH),
    "ssm_norm.weight": (STATE,), "ssm_out.weight": (WIDTH, STATE_HEADS * STATE),
}  # fmt: skip
_MAMBA: Shapes = _NORM | {
    "ssm_in.weight": (2 * INNER, WIDTH), "ssm_conv1d.weight": (INNER, KERNEL), "ssm_conv1d.bias": (INNER,),
    "ssm_x.weight": (RANK + 2 * STATE, INNER), "ssm_dt.weight": (INNER, RANK), "ssm_dt.bias": (INNER,),
    "ssm_a": (INNER, STATE), "ssm_d": (INNER,), "ssm_out.weight": (WIDTH, INNER),
}  # fmt: skip


def _qwen35(ffn: Shapes) -> Callable[[int], Shapes]:
    gated = _ATTENTION | {"attn_q.weight": (2 * HEADS * HEAD, WIDTH)} | _HEAD_NORMS
    return lambda layer: (gated if layer % 4 == 3 else _LINEAR) | _POST | ffn


def _deci(layer: int) -> Shapes:
    """Layer 2 has no attention, layer 5 no neurons."""
    return ({} if layer == 2 else _ATTENTION) | ({} if layer == 5 else _FFN_NORM | _GATED)


_NORMED: Shapes = {"output_norm.bias": (WIDTH,)}
FAMILIES: dict[str, tuple[Callable[[int], Shapes] | Shapes, Shapes]] = {
    "bloom": (
        _with_biases(_FUSED | _FFN_NORM | _UP_DOWN),
        _NORMED | {"token_embd_norm.weight": (WIDTH,), "token_embd_norm.bias": (WIDTH,)},
    ),
    "deci": (_deci, {}),
    "falcon": (_FUSED | {"attn_norm.bias": (WIDTH,)} | _UP_DOWN, _NORMED),
    "gemma2": (_ATTENTION | _POST | _FFN_NORM | _GATED | {"post_ffw_norm.weight": (WIDTH,)}, {}),
    "gpt-oss": (
        {
            name: shape
            for name, shape in _with_biases(_ATTENTION | _POST | _EXPERTS | {"attn_sinks.weight": (HEADS,)}).items()
            if not name.endswith("norm.bias")
        },
        {},
    ),
    "gpt2": (_with_biases(_FUSED | _FFN_NORM | _UP_DOWN), _NORMED | {"position_embd.weight": (CONTEXT, WIDTH)}),
    "mamba": (_MAMBA, {}),
    "minimax-m2": (_ATTENTION | _WHOLE_NORMS | _FFN_NORM | _EXPERTS | {"exp_probs_b.bias": (EXPERTS,)}, {}),
    "nemotron": (
        _ATTENTION | _FFN_NORM | _UP_DOWN | {"attn_norm.bias": (WIDTH,), "ffn_norm.bias": (WIDTH,)}, _NORMED,
    ),
    "phi3": (
        _NORM | {"attn_qkv.weight": ((HEADS + 2 * GROUPS) * HEAD, WIDTH), "attn_output.weight": (WIDTH, HEADS * HEAD)}
        | _FFN_NORM | {"ffn_up.weight": (2 * NEURONS, WIDTH), "ffn_down.weight": (WIDTH, NEURONS)},
        {},
    ),
    "qwen2moe": (_ATTENTION | _FFN_NORM | _EXPERTS | _SHARED, {}),
    "qwen3": (_ATTENTION | _HEAD_NORMS | _FFN_NORM | _GATED, {}),
    "qwen35": (_qwen35(_GATED), {}),
    "qwen35moe": (_qwen35(_EXPERTS | _SHARED), {}),
    "qwen3moe": (_ATTENTION | _HEAD_NORMS | _FFN_NORM | _EXPERTS, {}),
    "stablelm": (
        _ATTENTION | _FFN_NORM | _GATED | {"attn_norm.bias": (WIDTH,), "ffn_norm.bias": (WIDTH,)}, _NORMED,
    ),
    "starcoder2": (_with_biases(_ATTENTION | _FFN_NORM | _UP_DOWN), _NORMED),
}  # fmt: skip
"""By llama.cpp's name: tensors of a layer, and of the model beside embedding, last norm and head."""
_LAST = ("attn_output", "ffn_down", "ssm_out")


def write_family(path: Path, architecture: str, idle: Collection[int] = ()) -> None:
    """Write a tiny model of eight layers; those in `idle` add nothing."""
    of_layer, more = FAMILIES[architecture]
    shapes: Shapes = {"token_embd.weight": (VOCAB_SIZE, WIDTH), "output_norm.weight": (WIDTH,)} | more
    if architecture not in ("gemma2",):
        shapes["output.weight"] = (VOCAB_SIZE, WIDTH)
    for layer in range(LAYERS):
        found = of_layer(layer) if callable(of_layer) else of_layer
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in found.items()}
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        values = rng.normal(0, 0.2, shape).astype(np.float32)
        if "norm.weight" in name:
            values += 1
        if name.endswith("ssm_a"):
            values = -np.exp(values)
        if name.startswith(tuple(f"blk.{layer}." for layer in idle)) and name.split(".")[2].startswith(_LAST):
            values = np.zeros_like(values)
        tensors[name] = (values, GGMLQuantizationType.F32)
    writer = gguf.GGUFWriter(path, architecture)
    _add_header(writer, architecture)
    add_tokenizer(writer)
    finish(writer, tensors)


def _add_header(writer: gguf.GGUFWriter, architecture: str) -> None:
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_layer_norm_eps(1e-5)
    heads: Any = (HEADS, HEADS if architecture in ("bloom", "falcon", "gpt2") else GROUPS, NEURONS)
    if architecture == "deci":
        heads = tuple(
            [0 if layer == none else n for layer in range(LAYERS)] for n, none in zip(heads, (2, 2, 5), strict=True)
        )
    if architecture == "mamba":
        heads = (0, 0, 0)
    writer.add_head_count(heads[0])
    writer.add_head_count_kv(heads[1])
    writer.add_feed_forward_length(heads[2])
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10_000.0)
    if architecture in ("gemma2", "gpt-oss"):
        writer.add_sliding_window(WINDOW)
    if architecture == "stablelm":
        writer.add_parallel_residual(False)
    if "moe" in architecture or architecture in ("gpt-oss", "minimax-m2"):
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(NEURONS)
        writer.add_expert_shared_feed_forward_length(NEURONS)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if architecture == "mamba":
        _add_states(writer, INNER, RANK)
    if architecture.startswith("qwen35"):
        _add_states(writer, STATE_HEADS * STATE, STATE_HEADS)
        writer.add_ssm_group_count(2)
        writer.add_full_attention_interval(4)
        writer.add_rope_dimension_sections([4, 2, 2, 0])


def _add_states(writer: gguf.GGUFWriter, inner: int, rank: int) -> None:
    writer.add_ssm_conv_kernel(KERNEL)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(rank)
