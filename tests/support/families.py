"""Tiny random causal language models, one per family of ARCHITECTURES.md, and a tokenizer that reads any text.

`build_tiny` gives the bare model, `tiny_handle` a ModelHandle, `shared_handle` the same one for the whole test session
(a handle is read-only, so tests may share it). A new family is one line in FAMILIES: the contract tests find it.
"""

import os
from functools import cache, lru_cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from shortviz.model.handle import ModelHandle
from shortviz.model.load import model_info
from shortviz.records.model import ModelRef
from shortviz.records.plan import PrunePlan

NUM_LAYERS = 6
VOCAB_SIZE = 260
"""256 bytes and four special tokens, so that every text can be encoded."""
CONTEXT_LENGTH = 512
MAX_PARAMETERS = 300_000
DEVICE = os.environ.get("SHORTVIZ_TEST_DEVICE", "cpu")
"""Where the models of all handles are."""

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT_LENGTH,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
}
_GROUPED: dict[str, Any] = {"num_key_value_heads": 1, "initializer_range": 0.2}
_SLIDING: dict[str, Any] = {
    **_GROUPED,
    "sliding_window": 4,
    # No period divides this pattern: a wrong layer type shows for odd and for even blocks.
    "layer_types": [f"{kind}_attention" for kind in ("sliding", "sliding", "full", "sliding", "full", "full")],
}
_HEADED: dict[str, Any] = {**_GROUPED, "head_dim": 16}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "num_local_experts": 4}
_SHARED: dict[str, Any] = {
    **_HEADED,
    "sliding_window": 4,
    # Layer 4 reads the keys and values of layer 1, layer 5 those of layer 3.
    "layer_types": [f"{kind}_attention" for kind in ("sliding", "sliding", "full", "full", "sliding", "full")],
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 6,
    "vocab_size_per_layer_input": VOCAB_SIZE,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_HEADED},
    "mistral": {**_HEADED, "sliding_window": 4},
    "qwen2": {**_SLIDING, "use_sliding_window": True},
    "qwen3": {**_SLIDING, "head_dim": 16, "use_sliding_window": True},
    "gemma": {**_HEADED},
    "gemma2": {**_HEADED, "sliding_window": 4, "query_pre_attn_scalar": 16},
    "gemma3_text": {**_SLIDING, "head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3n_text": {
        **_SHARED,
        "initializer_range": 0.2,
        "intermediate_size": [48, 32, 48, 64, 48, 32],
        "activation_sparsity_pattern": [0.9, 0.0, 0.5, 0.0, 0.9, 0.0],
        "laurel_rank": 4,
    },
    "gemma4_text": {
        **_SHARED,
        "initializer_range": 0.2,
        "use_double_wide_mlp": True,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1_000_000.0},
        },
        "per_layer_config": {"2": {"head_dim": 32}, "3": {"head_dim": 32}, "5": {"head_dim": 32}},
    },
    "gpt2": {"initializer_range": 0.2},
    "gpt_neox": {"initializer_range": 0.2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2},
    "phi": {**_GROUPED},
    "phi3": {**_GROUPED, "original_max_position_embeddings": CONTEXT_LENGTH},
    "olmo": {**_GROUPED},
    "olmo2": {**_GROUPED},
    "olmo3": {**_SLIDING},
    "bloom": {"initializer_range": 0.2},
    "mpt": {"max_seq_len": CONTEXT_LENGTH, "initializer_range": 0.2, "use_cache": True},
    "falcon": {"num_kv_heads": 2, "ffn_hidden_size": 48, "initializer_range": 0.2},
    "mixtral": {**_GROUPED, **_EXPERTS},
    "qwen2_moe": {
        **_SLIDING,
        "use_sliding_window": True,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
        "mlp_only_layers": [1, 4],
    },
    "smollm3": {**_GROUPED, "no_rope_layers": [1, 1, 0, 1, 0, 0]},
    "granite": {**_GROUPED, "residual_multiplier": 0.8},
    "cohere": {**_GROUPED, "logit_scale": 1.0},
    "cohere2": {**_SLIDING, "head_dim": 16, "logit_scale": 1.0},
    "starcoder2": {**_GROUPED},
    "stablelm": {**_GROUPED},
    "gpt_oss": {
        **_SLIDING,
        **_EXPERTS,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "mamba": {"state_size": 4, "time_step_rank": 4, "initializer_range": 0.2},
    "lfm2": {
        **_GROUPED,
        "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention", "full_attention"],
        "block_multiple_of": 8,
        "full_attn_idxs": [2, 4, 5],
    },
    "glm4": {**_HEADED},
    "exaone4": {**_SLIDING},
    "nemotron": {**_HEADED},
    "ernie4_5": {**_HEADED},
    "hunyuan_v1_dense": {**_HEADED},
    "falcon_h1": {
        **_GROUPED,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
    "bitnet": {**_GROUPED},
    "apertus": {**_GROUPED, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "minimax": {
        **_HEADED,
        **_EXPERTS,
        "layer_types": [f"{kind}_attention" for kind in ("full", "linear", "linear", "full", "linear", "full")],
        "block_size": 8,
    },
    "seed_oss": {**_HEADED},
    "arcee": {**_HEADED},
    "xglm": {"ffn_dim": 48, "init_std": 0.2},
    "biogpt": {"initializer_range": 0.2},
}
"""Config fields per family, on top of the common sizes."""

# Common names that these families spell differently or do without.
_ABSENT = {
    "intermediate_size": ("gpt2", "opt", "bloom", "mpt", "falcon", "xglm"),
    "max_position_embeddings": ("bloom", "mpt", "mamba"),
    "num_attention_heads": ("mamba",),
}


def tiny_config(name: str, **changes: Any) -> PreTrainedConfig:
    """Return the tiny config of a family, with some fields changed; a field the config does not know is an error."""
    fields = {key: value for key, value in _COMMON.items() if name not in _ABSENT.get(key, ())}
    fields |= FAMILIES.get(name, {}) | changes
    config_class = CONFIG_MAPPING[name]
    known = set(config_class().to_dict()) | set(config_class.attribute_map) | {"intermediate_size"}
    assert set(fields) <= known, f"{name} does not know {sorted(set(fields) - known)}"
    return config_class(**fields)


def build_tiny(
    name: str, dtype: torch.dtype = torch.float32, seed: int = 0, config: PreTrainedConfig | None = None
) -> PreTrainedModel:
    """Return a tiny random model in eval mode without gradients; the same arguments give the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config or tiny_config(name), dtype=dtype)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            if parameter.ndim == 1:  # biases and norms would be equal in all layers, and a mixed-up layer not show
                parameter.add_(0.05 * torch.randn(parameter.shape, dtype=dtype))
    size = model.num_parameters()
    assert size <= MAX_PARAMETERS, f"the tiny {name} has {size} parameters"
    assert config is not None or model.config.get_text_config().num_hidden_layers == NUM_LAYERS
    return model.eval()


@lru_cache(maxsize=2)
def tiny_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer without merges: one token per UTF-8 byte; with `bos`, it puts <s> in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "<pad>", "<s>", "</s>", "<unk>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocab["<s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=CONTEXT_LENGTH,
    )


def handle_of(model: PreTrainedModel, name: str = "tiny", bos: bool = False) -> ModelHandle:
    """Return a handle on any model of these families."""
    if not hasattr(model, "hf_device_map"):  # else it is spread already
        model.to(DEVICE)
    info = model_info(model, id=name, revision=None, reason="a tiny random model for tests")
    return ModelHandle(model=model, tokenizer=tiny_tokenizer(bos), info=info, ref=ModelRef(id=name))


def tiny_handle(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, bos: bool = False) -> ModelHandle:
    """Return a handle on a fresh tiny model."""
    return handle_of(build_tiny(name, dtype, seed), f"tiny-{name}", bos)


@cache
def shared_handle(name: str) -> ModelHandle:
    """Return the float32 handle of a family that the whole test session shares."""
    return tiny_handle(name)


def tiny_tokens(length: int = 24, batch: int = 1, seed: int = 1) -> torch.Tensor:
    """Return random token ids without special tokens, shape (batch, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, length), generator=generator)


def plan_for(handle: ModelHandle) -> PrunePlan:
    """Return a cut the family can express: an odd number of layers off any period, else the first legal block."""
    wanted = PrunePlan(num_layers=NUM_LAYERS, removed=(1, 2, 4))
    illegal = {(start, n) for start, n, _ in handle.info.illegal}
    if not illegal:
        return wanted
    start, n = next((s, n) for n in (3, 2, 1) for s in range(NUM_LAYERS - n + 1) if (s, n) not in illegal)
    return PrunePlan(num_layers=NUM_LAYERS, removed=tuple(range(start, start + n)))
