"""What the tests of healing share: a small training on a tiny model."""

from typing import Any

from shortviz.heal.data import split_heldout
from shortviz.model.handle import ModelHandle
from shortviz.records.heal import HealHistory, HealSettings
from shortviz.records.text import ALL_TOKENS, TextSpec, TokenSet, WindowSet
from shortviz.text.tokens import tokenize

WINDOW = 32


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
