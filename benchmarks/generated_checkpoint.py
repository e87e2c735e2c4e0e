"""A Llama-shaped checkpoint of random bf16 weights in many files, for benchmarks of models that do not fit."""

import json
from pathlib import Path
from typing import Any

HIDDEN, INNER, HEADS, KEYS, VOCABULARY = 2048, 8192, 32, 8, 32000


def write_checkpoint(folder: Path, layers: int) -> int:
    """Write a Llama-shaped checkpoint of random bf16 weights, one shard a layer; return the bytes of its weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from tests.support.families import tiny_tokenizer

    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    head = HIDDEN // HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEYS * head, HIDDEN),
        "self_attn.v_proj": (KEYS * head, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    draw = torch.Generator().manual_seed(0)
    index = {}

    def write(number: int, tensors: dict[str, Any]) -> None:
        file = f"model-{number + 1:05d}-of-{layers + 1:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, file))

    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors = {
            f"{prefix}{name}.weight": torch.empty(shape).normal_(0, 0.02, generator=draw).bfloat16()
            for name, shape in shapes.items()
        }
        norms = ("input_layernorm", "post_attention_layernorm")
        write(layer, tensors | {f"{prefix}{n}.weight": torch.ones(HIDDEN, dtype=torch.bfloat16) for n in norms})
    table = torch.empty(VOCABULARY, HIDDEN).normal_(0, 0.02, generator=draw).bfloat16()
    write(layers, {"model.embed_tokens.weight": table, "model.norm.weight": torch.ones(HIDDEN).bfloat16()})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
