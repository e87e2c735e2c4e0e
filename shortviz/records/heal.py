"""How a cut model is trained, and how the training went: plain records, no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args

from shortviz.errors import FieldError, ShortvizError
from shortviz.records.formatting import Help
from shortviz.records.json import Known, Many
from shortviz.records.model import ModelInfo

Method = Literal["lora", "partial"]
Objective = Literal["next_token", "distill", "mixed", "seam"]
Quantize = Literal["none", "4bit"]
Precision = Literal["model", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HealSettings:
    """A recipe; the defaults are the paper's (Gromov et al., appendix), scaled to minutes on a CPU."""

    method: Annotated[Method, Help("lora, or partial: final norm, head, last layers.")] = "lora"
    """`lora`: low-rank adapters; `partial`: the final norm, the head where it is not tied, and the last layers."""
    objective: Annotated[Objective, Help("next_token, distill, seam, or mixed (distill and seam).")] = "next_token"
    """`next_token`: cross-entropy; `distill`: with the uncut model's distribution; `seam`: the uncut model's residual
    stream behind the cut; `mixed`: distill and seam. The default won back most of the lost NLL in our comparison."""
    rank: Annotated[int, Help("lora: rank of the adapters.")] = 16
    """Rank of the adapters."""
    alpha: Annotated[int | None, Help("lora: scale times rank.  [default: the rank]")] = None
    """Their scale is alpha / rank; None is alpha = rank, as in the paper."""
    dropout: Annotated[float, Help("lora: share of inputs dropped.")] = 0.0
    """On the adapters' input, 0 up to 1."""
    targets: Annotated[str, Help("lora: mlp, all, or names such as q_proj,v_proj.")] = "mlp"
    """`mlp`, `all` (attention too), or names of modules inside a layer, separated by commas."""
    last_layers: Annotated[int, Help("partial: layers trained at the end of the stack.")] = 3
    """partial: layers at the end of the stack that are trained."""
    learning_rate: Annotated[float, Help("The highest one.")] = 2e-3
    """The highest; it falls to 0 along half a cosine."""
    warmup_steps: Annotated[int, Help("Steps until it is reached.")] = 10
    steps: Annotated[int, Help("Updates.")] = 200
    """Updates of the weights."""
    batch_size: Annotated[int, Help("Windows run at once.", option="--train-batch")] = 1
    """Windows that are run at once."""
    accumulate: Annotated[int, Help("Batches behind one update.")] = 1
    """Batches behind one update."""
    length: Annotated[int, Help("Tokens in a training window.")] = 512
    """Tokens of a window."""
    temperature: Annotated[float, Help("distill, mixed: temperature.")] = 1.0
    """Of the distributions that are distilled."""
    mix: Annotated[float, Help("distill, mixed: share of distillation, the rest next tokens.")] = 0.5
    """Share of distillation, 0 to 1; the rest is cross-entropy."""
    seam_weight: Annotated[float, Help("mixed: weight of the seam's error.")] = 1.0
    """mixed: weight of the residual stream's relative squared error."""
    eval_every: Annotated[int, Help("Steps between two looks at held-out text.")] = 25
    """Steps between two measurements on held-out text."""
    seed: Annotated[int, Help("Of first weights, order of the text, dropout.")] = 0
    """Of the adapters' first weights, the order of the text, and dropout."""
    gradient_checkpointing: Annotated[bool, Help("Less memory, a third more time.")] = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    precision: Annotated[Precision, Help("model (its dtype), or bfloat16 while training.")] = "model"
    """Of the training's matrix products: the model's own dtype, or `bfloat16` (autocast; what is kept stays as it is).
    Half again as fast on a CPU with AVX512-BF16, for gradients at a cosine of 0.9997."""
    quantize: Annotated[Quantize, Help("none, or 4bit while training (CUDA, bitsandbytes).")] = "none"
    """`4bit`: the frozen weights in 4 bits while training (QLoRA); needs a GPU and bitsandbytes."""

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise ShortvizError(f"The {_word(name)} is {getattr(self, name)!r}; it must be one of {choices}.")
        for name, (low, high, allowed) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ShortvizError(f"The setting {_word(name)} is {value:.6g}; it must be {allowed}.")
        if self.warmup_steps > self.steps:
            raise ShortvizError(
                f"The warm-up takes {self.warmup_steps} steps of {self.steps}; choose a shorter one, or more steps."
            )
        if self.quantize == "4bit" and self.method == "partial":
            raise ShortvizError("Weights in 4 bits cannot be trained themselves; choose method lora, or quantize none.")
        if self.method == "partial" and self.objective == "seam":
            raise ShortvizError(
                "The objective seam trains what stands before the cut and method partial what stands behind it; choose "
                "method lora, or another objective."
            )

    @property
    def scale_alpha(self) -> int:
        """Alpha, the default filled in."""
        return self.rank if self.alpha is None else self.alpha

    @property
    def needs_base(self) -> bool:
        """Whether the uncut model is needed as a teacher."""
        return self.objective != "next_token"

    @property
    def tokens_per_step(self) -> int:
        """Tokens behind one update, on one device."""
        return self.batch_size * self.accumulate * self.length


_CHOICES = {"method": Method, "objective": Objective, "quantize": Quantize, "precision": Precision}
_COUNTS = ("rank", "alpha", "last_layers", "steps", "batch_size", "accumulate", "eval_every")
_LIMITS = {
    **dict.fromkeys(_COUNTS, (1, math.inf, "at least 1")),
    **dict.fromkeys(("warmup_steps", "seed"), (0, math.inf, "at least 0")),
    "length": (2, math.inf, "at least 2"),
    "dropout": (0.0, 0.95, "between 0 and 0.95"),
    "learning_rate": (1e-12, 10.0, "above 0 and at most 10"),
    "temperature": (0.05, 100.0, "between 0.05 and 100"),
    "mix": (0.0, 1.0, "between 0 and 1"),
    "seam_weight": (0.0, 1e6, "0 or above"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnText:
    """Training text that the uncut model writes itself, after prompts; the settings of its sampling."""

    self_share: Annotated[
        float | None,
        Help("Share of the training windows that the uncut model writes itself; --text self is all, of no other text."),
    ] = None
    """Above 0 and at most 1; None is none. The rest is the text of the request."""
    prompts: Annotated[
        str | None,
        Help("Its own text: prompts to go on from, a line or a row each.  [default: built in]", metavar="FILE"),
    ] = None
    """A file; plain text, which no chat template changes."""
    self_tokens: Annotated[int, Help("Its own text: how many tokens it writes.")] = 32_768
    self_length: Annotated[int, Help("Its own text: most tokens after a prompt.")] = 256
    self_temperature: Annotated[float, Help("Its own text: temperature; 0 is the most likely token.")] = 1.0
    self_top_p: Annotated[float, Help("Its own text: sampled from so much of the probability.")] = 0.95
    self_seed: Annotated[int, Help("Its own text: seed of the sampling.")] = 0

    def __post_init__(self) -> None:
        for name, (low, high, allowed) in _OWN_LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise FieldError(name, f"is {value:.6g}; it must be {allowed}")


_OWN_LIMITS = {
    "self_share": (1e-6, 1.0, "above 0 and at most 1"),
    **dict.fromkeys(("self_tokens", "self_length"), (1, math.inf, "at least 1")),
    "self_temperature": (0.0, 100.0, "between 0 and 100"),
    "self_top_p": (1e-6, 1.0, "above 0 and at most 1"),
    "self_seed": (0, math.inf, "at least 0"),
}


def limits_of(field: str) -> tuple[float, float]:
    """Return the least and the largest value of a setting that is a number; inf where there is no largest."""
    return _LIMITS[field][:2]


PRESETS: Mapping[str, HealSettings] = {
    "quick": HealSettings(steps=50, warmup_steps=5, eval_every=10),
    "good": HealSettings(),
    "paper": HealSettings(
        rank=64,
        dropout=0.05,
        learning_rate=3e-4,
        warmup_steps=100,
        steps=5000,
        batch_size=16,
        length=2048,
        eval_every=100,
    ),
}
"""quick: minutes on a laptop; good: a quarter of an hour; paper: as published, for a GPU."""


def preset(name: str, model: ModelInfo | None = None, **changes: Any) -> HealSettings:
    """Return the settings of a preset with some changed, fitted to a model: its context length, and its size.

    The learning rates of `quick` and `good` were chosen on a model of 135M parameters; larger ones want less, and the
    paper's figures (3e-4 for 7B and 13B, 3e-5 for 70B) are taken there. A setting that is changed is never fitted.

    Raises ShortvizError where there is no such preset or setting, or a value makes no sense.
    """
    if name not in PRESETS:
        raise ShortvizError(f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
    known = [field.name for field in fields(HealSettings)]
    if unknown := [key for key in changes if key not in known]:
        raise ShortvizError(f"There is no setting {unknown[0]!r} of healing; there are {', '.join(known)}.")
    found = PRESETS[name]
    fitted: dict[str, Any] = {}
    if model is not None:
        if model.context_length is not None and found.length > model.context_length:
            fitted["length"] = model.context_length
        if model.parameters > 3e10:
            fitted["learning_rate"] = 3e-5
        elif model.parameters > 1e9:
            fitted["learning_rate"] = 3e-4
    if (steps := changes.get("steps")) is not None and 0 < steps < found.warmup_steps:
        fitted["warmup_steps"] = steps // 10
    return replace(found, **(fitted | changes))


def _word(name: str) -> str:
    return name.replace("_", " ")


@dataclass(frozen=True, kw_only=True, slots=True)
class HealPoint:
    """One step of a training; step 0 is the model before it."""

    step: int
    """Updates done."""
    loss: float | None
    """What was minimised, averaged over the step's tokens; None at step 0."""
    heldout_nll: float | None = None
    """On the held-out windows, in nats a token, where it was measured."""
    heldout_stderr: Known = None
    """Of that, over windows."""
    tokens_per_second: float = 0.0
    learning_rate: float = 0.0
    seconds: float = 0.0
    """Since the start, measuring and earlier sittings included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HealHistory:
    """How a training went."""

    points: Many[HealPoint] = ()
    steps: int = 0
    """Steps that were asked for."""
    best_step: int = 0
    """Updates behind the weights that are kept: those with the lowest held-out NLL so far."""
    best_nll: float | None = None
    """Held-out NLL there, in nats a token."""
    start_nll: float | None = None
    """Held-out NLL before the first step."""
    note: str = ""
    """A sentence for people, where the training ended early."""

    @property
    def measured(self) -> tuple[HealPoint, ...]:
        """The points with a held-out NLL."""
        return tuple(point for point in self.points if point.heldout_nll is not None)

    @property
    def complete(self) -> bool:
        """Whether every step was made."""
        return bool(self.points) and self.points[-1].step >= self.steps
