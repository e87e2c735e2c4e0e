"""What the tests of healing share: a small training on a tiny model."""

from functools import cache
from typing import Any

import torch

from shortviz.heal.data import split_heldout
from shortviz.model.handle import ModelHandle
from shortviz.records.heal import HealHistory, HealSettings
from shortviz.records.text import ALL_TOKENS, TextSpec, TokenSet, WindowSet, WindowSpec
from shortviz.text.tokens import make_windows, tokenize
from tests.support.families import build_tiny, handle_of, tiny_config

WINDOW = 32
BOS = 257


@cache
def needs_bos() -> ModelHandle:
    """A tiny model that leans on its BOS, as Gemma does: without one its loss is half a nat higher.

    Built: a direction of the residual stream that only BOS has, which every head's query looks for (in the pair of
    channels that RoPE hardly turns), and no value there: attention rests on it and adds nothing. Without it attention
    adds noise. Then its MLPs and head are trained a little, on windows that begin with BOS.
    """
    model = build_tiny("qwen2", config=tiny_config("qwen2", use_sliding_window=False, layer_types=None))
    slow = model.config.hidden_size // model.config.num_attention_heads // 2 - 1
    model.model.embed_tokens.weight[:, -1] = 0
    model.model.embed_tokens.weight[BOS] = 0
    model.model.embed_tokens.weight[BOS, -1] = 10
    for layer in model.model.layers:
        attention = layer.self_attn
        for writer in (attention.o_proj, layer.mlp.down_proj):
            writer.weight[-1] = 0
        for reader in (attention.k_proj, attention.v_proj):
            reader.weight[:, -1] = 0
        attention.k_proj.weight[slow] = 0
        attention.k_proj.weight[slow, -1] = 4
        attention.q_proj.weight.unflatten(0, (2, -1))[:, slow] = 0
        attention.q_proj.bias.unflatten(0, (2, -1))[:, slow] = 4
        attention.v_proj.bias.zero_()
    handle = handle_of(model, "tiny-needs-bos", bos=True)
    text = TextSpec(kind="builtin", value="passages/prose")
    windows = make_windows(text, WindowSpec(window=2 * WINDOW, windows=99), handle.tokenizer)
    tokens = torch.tensor(windows.tokens, device=model.device)
    trained = [weight for name, weight in model.named_parameters() if "mlp" in name or "lm_head" in name]
    optimizer = torch.optim.Adam([weight.requires_grad_() for weight in trained], lr=1e-2)
    for step in range(120):
        batch = tokens[torch.arange(8 * step, 8 * step + 8) % len(tokens)]
        logits = model(input_ids=batch).logits[:, :-1]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
    for weight in trained:
        weight.requires_grad_(False)
    return handle


def small_recipe(**changes: Any) -> HealSettings:
    """Eight steps of two windows of 32 tokens, measured every second one."""
    recipe: dict[str, Any] = {
        "objective": "mixed",
        "rank": 4,
        "dropout": 0.1,
        "steps": 8,
        "warmup_steps": 2,
        "length": WINDOW,
        "batch_size": 2,
        "eval_every": 2,
        "learning_rate": 3e-3,
        "last_layers": 1,
    }
    return HealSettings(**(recipe | changes))


def losses_of(history: HealHistory) -> list[float]:
    """The loss of each step."""
    return [point.loss for point in history.points if point.loss is not None]


def small_text(handle: ModelHandle, limit: int = 20) -> tuple[TokenSet, WindowSet]:
    """Text to train on, and two windows of it held out."""
    spec = TextSpec(kind="builtin", value="passages/prose", limit=limit, max_length=ALL_TOKENS)
    return split_heldout(tokenize(spec, handle.tokenizer), windows=2, window=WINDOW)
