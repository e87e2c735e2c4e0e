"""What was done to a model after the cut, and what each step gave back: plain records, no torch.

One ledger per cut: uncut -> cut -> repaired -> healed, every step scored on the same windows. Several repairs of one
cut stand in it side by side, each healing says by its treatments what it began from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from shortviz.records.json import Known, Many
from shortviz.records.measured import Evaluation
from shortviz.records.text import TaskScore, TextInfo

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
    treatments: Many[Treatment] = ()
    """What made this model of the cut one, in order; none for uncut and cut."""
    recovered: Known = None
    """Share of the lost NLL won back: 1 - (NLL - uncut) / (cut - uncut); None for uncut and cut, NaN where the cut lost
    nothing that could be won back."""
    recovered_stderr: Known = None
    """Over windows, to first order, paired; NaN with one window or where the NLL of each window was not kept."""
    task: TaskScore | None = None
    continuation: str = ""
    """What the model of this step makes of the ledger's prompt."""
    command: str = ""
    """The command line that makes this model again, files named without their folders; "" where it is not known."""

    @property
    def methods(self) -> tuple[str, ...]:
        """What tells this step from the others of its ledger, e.g. `("seam_refit", "lora")`."""
        return tuple(treatment.method for treatment in self.treatments)

    @property
    def seconds(self) -> float:
        """Time that all treatments up to this step took."""
        return sum(treatment.seconds for treatment in self.treatments)

    @property
    def label(self) -> str:
        """The step in words, e.g. `repaired (seam refit)`, `healed (seam refit, then lora)`."""
        groups = [(name, len(list(same))) for name, same in groupby(self.methods)]
        words = ", then ".join(name.replace("_", " ") + (f" × {n}" if n > 1 else "") for name, n in groups)
        return f"{self.name} ({words})" if words else self.name


def treated_name(treatments: Sequence[Treatment]) -> StepName:
    """Return which step of a ledger a model is that went through these treatments."""
    return "healed" if any(treatment.kind == "heal" for treatment in treatments) else "repaired"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """Uncut, cut, repaired, healed: what a cut lost and what came back, all on the same windows."""

    removed: Many[int]
    """The cut, in layer numbers of the uncut model."""
    text: TextInfo
    """The evaluation windows."""
    steps: Many[LedgerStep]
    """Uncut and cut first, then the others in the order in which they were made."""
    prompt: str = ""

    def step(self, name: StepName, methods: tuple[str, ...] | None = None) -> LedgerStep | None:
        """Return the newest step of a name (of exactly these methods, where given), or None."""
        found = [s for s in self.steps if s.name == name and methods in (None, s.methods)]
        return found[-1] if found else None

    def task(self, step: LedgerStep) -> TaskScore | None:
        """Return a step's accuracy, of the questions that the uncut model was scored on last; None for others."""
        uncut = self.step("uncut")
        asked = uncut.task.fingerprint if uncut is not None and uncut.task is not None else None
        return step.task if step.task is not None and step.task.fingerprint == asked else None

    @property
    def lost(self) -> tuple[float, float]:
        """NLL(cut) - NLL(uncut) with its paired error, in nats; NaN where the cut was not scored."""
        cut = self.step("cut")
        found = (cut.evaluation.nll_increase, cut.evaluation.nll_increase_stderr) if cut else (None, None)
        return float("nan") if found[0] is None else found[0], float("nan") if found[1] is None else found[1]

    @property
    def best(self) -> LedgerStep | None:
        """The treated step of lowest NLL, or None where nothing was done after the cut."""
        treated = [s for s in self.steps if s.treatments]
        return min(treated, key=lambda s: s.evaluation.score.nll, default=None)
