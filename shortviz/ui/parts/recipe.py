"""The settings of a training: three presets, every setting behind them, and the text that the model writes itself."""

from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import streamlit as st

from shortviz.errors import ShortvizError
from shortviz.records.formatting import count
from shortviz.records.heal import PRESETS, HealSettings, OwnText, limits_of, preset
from shortviz.records.model import ModelInfo
from shortviz.service import policy
from shortviz.service.requests import Change
from shortviz.settings import settings
from shortviz.ui.parts import notes
from shortviz.ui.session import state as s

PRESET_WORDS: Final = {"quick": "Quick", "good": "Good", "paper": "Paper"}
_COLUMNS: Final = (
    {"method": "Method", "objective": "Objective", "targets": "Adapters on", "rank": "Rank",
     "quantize": "Frozen weights"},
    {"steps": "Steps", "batch_size": "Windows at once", "accumulate": "Batches per step", "length": "Tokens a window",
     "precision": "Precision"},
    {"learning_rate": "Learning rate", "warmup_steps": "Warm-up steps", "dropout": "Dropout",
     "eval_every": "Held-out every", "seam_weight": "Seam weight"},
    {"temperature": "Temperature", "mix": "Distilled share", "last_layers": "Last layers", "seed": "Seed",
     "gradient_checkpointing": "Save memory"},
)  # fmt: skip
"""Settings by their label; what they may be and what they mean is said by their fields."""
_SUGGESTED: Final = {"targets": ("mlp", "all")}
_SHARES: Final = {"The training text": None, "What the uncut model writes": 1.0, "Half and half": 0.5}
_STEPS: Final = {"learning_rate": 1e-4, "dropout": 0.05, "mix": 0.1}


def preset_switch() -> str:
    """Draw the three presets, and return the chosen one."""
    found = st.segmented_control(
        "Recipe",
        list(PRESETS),
        format_func=lambda name: PRESET_WORDS.get(name, name.capitalize()),
        default="quick",
        required=True,
        key=s.RECIPE,
        persist_state="session",
        help="Quick: a minute or a few on a laptop. Good: a quarter of an hour. Paper: as published, for a GPU.",
    )
    return found if found in PRESETS else "quick"


def share_choice() -> float | None:
    """Draw what is trained on, and return which share of it the uncut model writes itself; None is none."""
    found = st.selectbox(
        "Train on", list(_SHARES), key=s.TRAIN_ON, persist_state="session", width=225,
        help="The uncut model writes text after built-in prompts, before the training. A repair is fitted to the "
        "training text all the same.",
    )  # fmt: skip
    return _SHARES.get(found)


def own_text(share: float | None) -> OwnText:
    """Draw how much the uncut model writes itself, where it does."""
    if share is None:
        return OwnText()
    most, after_each = policy.most_tokens(settings())
    tokens = st.number_input(
        "Tokens that the uncut model writes", 1, most, value=min(OwnText().self_tokens, most), step=1024,
        key="recipe_self_tokens", persist_state="session",
    )  # fmt: skip
    return OwnText(self_share=share, self_tokens=tokens, self_length=after_each)


def changes(name: str, model: ModelInfo) -> tuple[Change, ...] | None:
    """Draw every setting of a preset; return what is changed, or None where it makes no sense, which is told."""
    first = preset(name, model)
    found: dict[str, Any] = {}
    for column, labels in zip(st.columns(len(_COLUMNS), gap="small"), _COLUMNS, strict=True):
        with column:
            for field, label in labels.items():
                found[field] = _input(name, field, label, getattr(first, field))
    changed = {field: value for field, value in found.items() if value != getattr(first, field)}
    try:
        preset(name, model, **changed)
    except ShortvizError as error:
        notes.problem(str(error))
        return None
    return tuple(changed.items())


def summary(recipe: HealSettings) -> str:
    """Return the recipe in a line: what, how long, on how many tokens."""
    tokens = recipe.steps * recipe.tokens_per_step
    what = f"LoRA of rank {recipe.rank}" if recipe.method == "lora" else f"the last {recipe.last_layers} layers"
    heavy = " That is for a GPU." if tokens > 5_000_000 else ""
    return (
        f"{recipe.steps:,} steps of {recipe.tokens_per_step:,} tokens ({count(tokens)} in all), {what}, "
        f"objective {recipe.objective.replace('_', ' ')}.{heavy}"
    )


def _input(name: str, field: str, label: str, first: Any) -> Any:
    kind, said = get_args(get_type_hints(HealSettings, include_extras=True)[field])
    common: dict[str, Any] = {
        "key": f"recipe_{name}_{field}",  # a preset's own widgets: switching brings its values back
        "help": said.text,
        "persist_state": "session",
    }
    if field in _SUGGESTED or get_origin(kind) is Literal:
        options = list(dict.fromkeys([*_SUGGESTED.get(field, get_args(kind)), str(first)]))
        return st.selectbox(label, options, index=options.index(str(first)), **common)
    if isinstance(first, bool):
        return st.toggle(label, value=first, **common)
    low, high = limits_of(field)
    if isinstance(first, int):
        return st.number_input(label, min_value=int(low), value=first, **common)
    form = "%.2e" if field == "learning_rate" else "%.2f"
    step = _STEPS.get(field, 0.5)
    return st.number_input(label, min_value=low, max_value=high, value=first, step=step, format=form, **common)
