"""The settings of a healing: three presets, and every setting behind them."""

from dataclasses import dataclass
from typing import Any, Final

import streamlit as st

from shortviz.errors import ShortvizError
from shortviz.records.formatting import count
from shortviz.records.heal import PRESETS, HealSettings, preset
from shortviz.records.model import ModelInfo
from shortviz.ui.parts import notes
from shortviz.ui.session import state as s

PRESET_WORDS: Final = {"quick": "Quick", "good": "Good", "paper": "Paper"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Field:
    """One setting as a widget; `choices` makes it a list, else it is a number."""

    name: str
    label: str
    help: str = ""
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 1_000_000
    step: float | None = None
    form: str | None = None


_FIELDS: Final = (
    (
        _Field(name="method", label="Method", choices=("lora", "partial"),
               help="lora: low-rank adapters. partial: final norm, untied head, last layers."),
        _Field(name="objective", label="Objective", choices=("mixed", "distill", "next_token", "seam"),
               help="What is minimised: the uncut model's distribution, its stream behind the cut, or the next token."),
        _Field(name="targets", label="Adapters on", choices=("mlp", "all"), help="all: attention too."),
        _Field(name="rank", label="Rank", low=1, high=1024, help="Of the adapters."),
        _Field(name="quantize", label="Frozen weights", choices=("none", "4bit"),
               help="4bit: QLoRA; needs a GPU and bitsandbytes."),
    ),
    (
        _Field(name="steps", label="Steps", low=1, help="Updates of the weights."),
        _Field(name="batch_size", label="Windows at once", low=1, high=1024),
        _Field(name="accumulate", label="Batches per step", low=1, high=1024),
        _Field(name="length", label="Tokens a window", low=2, high=65_536),
        _Field(name="precision", label="Precision", choices=("model", "bfloat16"), help="model: that of the weights."),
    ),
    (
        _Field(name="learning_rate", label="Learning rate", low=1e-7, high=1.0, step=1e-4, form="%.2e",
               help="The highest; it falls to 0 along half a cosine."),
        _Field(name="warmup_steps", label="Warm-up steps"),
        _Field(name="dropout", label="Dropout", high=0.95, step=0.05, form="%.2f"),
        _Field(name="eval_every", label="Held-out every", low=1, help="Steps between two measurements."),
        _Field(name="seam_weight", label="Seam weight", high=1e6, step=0.5, form="%.2f",
               help="mixed: weight of the error behind the cut."),
    ),
    (
        _Field(name="temperature", label="Temperature", low=0.05, high=100.0, step=0.5, form="%.2f",
               help="Of the distributions that are distilled."),
        _Field(name="mix", label="Distilled share", high=1.0, step=0.1, form="%.2f",
               help="The rest is cross-entropy."),
        _Field(name="last_layers", label="Last layers", low=1, high=1000, help="partial: how many are trained."),
        _Field(name="seed", label="Seed"),
        _Field(name="gradient_checkpointing", label="Save memory",
               help="Activations are computed twice, not kept: a third more time."),
    ),
)  # fmt: skip


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


def settings(name: str, model: ModelInfo) -> HealSettings | None:
    """Draw every setting of a preset; return them, or None where they contradict each other (which is then told)."""
    first = preset(name, model)
    changed: dict[str, Any] = {}
    for column, group in zip(st.columns(len(_FIELDS), gap="small"), _FIELDS, strict=True):
        with column:
            for field in group:
                changed[field.name] = _input(name, field, getattr(first, field.name))
    try:
        return preset(name, model, **changed)
    except ShortvizError as error:
        notes.problem(str(error))
        return None


def summary(recipe: HealSettings) -> str:
    """Return the recipe in a line: what, how long, on how many tokens."""
    tokens = recipe.steps * recipe.tokens_per_step
    what = f"LoRA of rank {recipe.rank}" if recipe.method == "lora" else f"the last {recipe.last_layers} layers"
    heavy = " That is for a GPU." if tokens > 5_000_000 else ""
    return (
        f"{recipe.steps:,} steps of {recipe.tokens_per_step:,} tokens ({count(tokens)} in all), {what}, "
        f"objective {recipe.objective.replace('_', ' ')}.{heavy}"
    )


def _input(name: str, field: _Field, first: Any) -> Any:
    key = f"recipe_{name}_{field.name}"  # a preset's own widgets: switching brings its values back
    if field.choices:
        options = list(dict.fromkeys([*field.choices, str(first)]))
        return st.selectbox(
            field.label, options, index=options.index(str(first)), key=key, help=field.help or None,
            persist_state="session",
        )  # fmt: skip
    if isinstance(first, bool):
        return st.toggle(field.label, value=first, key=key, help=field.help or None, persist_state="session")
    kind = type(first)
    return st.number_input(
        field.label,
        min_value=kind(field.low),
        max_value=kind(field.high),
        value=first,
        step=kind(field.step) if field.step is not None else None,
        format=field.form,
        key=key,
        help=field.help or None,
        persist_state="session",
    )
