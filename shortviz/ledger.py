"""What was done to a model after the cut, and what each step gave back: plain records, no torch.

One ledger per cut: uncut -> cut -> repaired -> healed, every step scored on the same windows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from shortviz.records import Evaluation, TaskScore, TextInfo

StepName = Literal["uncut", "cut", "repaired", "healed"]
Setting = bool | int | float | str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Treatment:
    """One repair or one healing that a model went through; a ModelHandle carries its own in order."""

    kind: Literal["repair", "heal"]
    method: str
    """E.g. `seam_refit`, `linear_fold`, `lora`."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    """Everything needed to do it again, and what it found (ridge, steps, the scale factor, ...)."""
    text: TextInfo | None = None
    """The text it was fitted or trained on."""
    seconds: float = 0.0
    note: str = ""
    """A sentence for people, where there is something to say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerStep:
    """One line of a ledger."""

    name: StepName
    evaluation: Evaluation
    """On the ledger's windows; `nll_increase` and its error are paired against the uncut model."""
    treatment: Treatment | None = None
    """What made this step of the one before; None for uncut and cut."""
    recovered: float | None = None
    """Share of the lost NLL won back: 1 - (NLL - uncut) / (cut - uncut); None for uncut and cut."""
    recovered_stderr: float | None = None
    """Over windows, to first order, paired; NaN with one window."""
    task: TaskScore | None = None
    continuation: str = ""
    """What the model of this step makes of the ledger's prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """Uncut, cut, repaired, healed: what a cut lost and what came back, all on the same windows."""

    removed: tuple[int, ...]
    """The cut, in layer numbers of the uncut model."""
    text: TextInfo
    """The evaluation windows."""
    steps: tuple[LedgerStep, ...]
    prompt: str = ""
