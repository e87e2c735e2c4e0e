"""What was done to a model after the cut, and what each step gave back, as a ledger on the same windows. No torch.

One ledger per cut: uncut -> cut -> repaired -> healed, every step scored on the same windows. Several repairs of one
cut stand in it side by side, each healing says by its treatments what it began from.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import Field

from shortviz.errors import ShortvizError
from shortviz.records.formatting import counted, with_error
from shortviz.records.json import Known, Many, Number, Some
from shortviz.records.measured import Evaluation
from shortviz.records.sums import mean_and_stderr, paired_stderr
from shortviz.records.text import TaskScore, TextInfo

StepName = Literal["uncut", "cut", "repaired", "healed"]
Setting = bool | int | float | str | None
TRAINED = "seam_trained"
"""The repair that is no closed form: what it refitted is trained."""


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
class ProbeItem:
    """One thing that a probe asks."""

    question: str
    """What stands behind the probe's examples; the model goes on from there."""
    answer: str
    """What it must write up to the end of the line, to the letter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A kind of things that a model is made to write, with the answers known."""

    name: str
    """`copy`, `addition`, `brackets`, `recall` or `facts`."""
    seed: int
    examples: str
    """What every prompt begins with: some items with their answers."""
    items: Many[ProbeItem]
    """Made from the seed; none where it was refused."""
    refused: str = ""
    """Why it was not asked, in a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeScore:
    """What one model wrote in a probe."""

    probe: str
    seed: int
    right: str
    """For each item in order 1 where the answer is right, else 0."""
    written: Many[str]
    """What the model wrote, up to the end of the line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessScore:
    """What lm_eval found of one model, in one metric of one task."""

    task: str
    metric: str
    """E.g. `acc`."""
    value: Number
    stderr: Number
    """As lm_eval says."""
    version: str
    """Of lm_eval."""
    limit: int | None = None
    """At most so many samples were asked for; None is all."""
    marks: Some[float] = ()
    """The metric of each sample, in the order of the task's documents; none where it is not one of samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How long the uncut and the cut model took for the same tokens, in turns."""

    name: str
    """E.g. `prefill, 8 x 256 tokens`."""
    tokens: int
    """Of one turn."""
    uncut: Many[float]
    """Seconds of each turn."""
    cut: Many[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEvidence:
    """What was measured of one step's model beside its evaluation and its questions."""

    texts: Some[Evaluation] = ()
    """On texts of other kinds; `nll_increase` is paired against the uncut model."""
    probes: Some[ProbeScore] = ()
    harness: Some[HarnessScore] = ()
    disk_bytes: int = 0
    """Of the weights as an export writes them; 0 where not computed."""


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
    evidence: Annotated[StepEvidence, Field(exclude_if=lambda found: found == StepEvidence())] = StepEvidence()
    """Left out of the JSON where there is none."""

    @property
    def methods(self) -> tuple[str, ...]:
        """What tells this step from the others of its ledger, e.g. `("seam_refit", "lora")`."""
        return tuple(treatment.method for treatment in self.treatments)

    @property
    def key(self) -> tuple[StepName, tuple[str, ...]]:
        """What a ledger holds one step of: its name and its methods."""
        return self.name, self.methods

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
    probes: Some[Probe] = ()
    """What the steps' models were made to write."""
    paces: Some[Pace] = ()
    """Speed of the uncut and the cut model, whose shape the treated ones have too; none where not measured."""

    def step(self, name: StepName) -> LedgerStep | None:
        """Return the newest step of a name, or None."""
        return next((step for step in reversed(self.steps) if step.name == name), None)

    def treated(self, methods: tuple[str, ...]) -> LedgerStep | None:
        """Return the newest step of exactly these methods, or None; of none there is no treated step."""
        return next((step for step in reversed(self.steps) if methods and step.methods == methods), None)

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


def start_ledger(
    cut: Evaluation,
    *,
    prompt: str = "",
    uncut_text: str = "",
    cut_text: str = "",
    uncut_task: TaskScore | None = None,
    cut_task: TaskScore | None = None,
) -> Ledger:
    """Return a ledger with its first two steps, from the cut model's evaluation against the uncut one.

    `uncut_text` and `cut_text` are the two models' continuations of `prompt`, `uncut_task` and `cut_task` what they
    answered.
    Raises ShortvizError where the evaluation has nothing to compare with.
    """
    if cut.base is None or not cut.removed:
        raise ShortvizError("A ledger needs the cut model measured against the uncut one: evaluate it with base=.")
    uncut = Evaluation(score=cut.base, text=cut.text, complete=cut.complete)
    return Ledger(
        removed=cut.removed,
        text=cut.text,
        prompt=prompt,
        steps=(
            LedgerStep(name="uncut", evaluation=uncut, continuation=uncut_text, task=_small(uncut_task)),
            LedgerStep(name="cut", evaluation=cut, continuation=cut_text, task=_small(cut_task)),
        ),
    )


def add_step(
    ledger: Ledger,
    name: StepName,
    evaluation: Evaluation,
    treatments: Sequence[Treatment],
    *,
    task: TaskScore | None = None,
    continuation: str = "",
    command: str = "",
) -> Ledger:
    """Return the ledger with a treated model's step; it takes the place of one of the same name and methods.

    `treatments` are all that the model went through (its handle's). Raises ShortvizError where the evaluation is of
    another cut or of other windows: shares of different texts say nothing together.
    """
    cut = ledger.step("cut")
    assert cut is not None, "a ledger starts with uncut and cut"
    if evaluation.removed != ledger.removed:
        raise ShortvizError(
            f"This model lacks layers {list(evaluation.removed)}, the ledger is of the cut {list(ledger.removed)}; "
            "start a ledger for each cut."
        )
    windows, scored = (one.score.windows for one in (cut.evaluation, evaluation))
    if evaluation.text.fingerprint != ledger.text.fingerprint or windows != scored:
        raise ShortvizError(
            f"The treated model was scored on {scored} windows of {evaluation.text.source}, the cut one on {windows} "
            f"of {ledger.text.source}; score both on the same windows."
        )
    recovered, error = recovered_share(cut.evaluation, evaluation)
    step = LedgerStep(
        name=name,
        evaluation=evaluation,
        treatments=tuple(treatments),
        recovered=recovered,
        recovered_stderr=error,
        task=_small(task),
        continuation=continuation,
        command=command,
    )
    return replace(ledger, steps=_ordered([*(s for s in ledger.steps if s.key != step.key), step]))


def _ordered(steps: Sequence[LedgerStep]) -> tuple[LedgerStep, ...]:
    return tuple(sorted(steps, key=lambda step: get_args(StepName).index(step.name)))


def merged(old: Ledger, new: Ledger) -> Ledger:
    """Return `new` with the treated steps of `old` that it does not have, of the same cut and windows.

    An untreated step keeps the accuracy and the evidence it had, for its model is the same; a treated one was made
    anew.
    """
    before, have = {step.key: step for step in old.steps}, {step.key for step in new.steps}
    kept = [step for key, step in before.items() if step.treatments and key not in have]
    cuts = [ledger.step("cut") for ledger in (old, new)]
    nll = [math.nan if cut is None else cut.evaluation.score.nll for cut in cuts]
    if not math.isclose(*nll, abs_tol=1e-6):
        kept = []  # measured anew with another result: shares against another loss do not belong beside these
    if new.prompt and old.prompt != new.prompt:
        kept = [replace(step, continuation="") for step in kept]
    steps = [
        _with_known(step, before[step.key]) if not step.treatments and step.key in before else step
        for step in new.steps
    ]
    return replace(
        new, steps=_ordered([*kept, *steps]), prompt=new.prompt or old.prompt, probes=new.probes or old.probes,
        paces=new.paces or old.paces,
    )  # fmt: skip


def _with_known(step: LedgerStep, old: LedgerStep) -> LedgerStep:
    """Return the step with what is known of its model, where it does not have it itself."""
    known = step.evidence if step.evidence != StepEvidence() else old.evidence
    return replace(step, task=step.task or old.task, evidence=known)


def with_evidence(ledger: Ledger, step: LedgerStep, evidence: StepEvidence) -> Ledger:
    """Return the ledger with the evidence of one of its steps."""
    steps = (replace(each, evidence=evidence) if each.key == step.key else each for each in ledger.steps)
    return replace(ledger, steps=tuple(steps))


def with_task_score(ledger: Ledger, key: tuple[StepName, tuple[str, ...]], score: TaskScore) -> Ledger:
    """Return the ledger with the accuracy of one of its steps; nothing changes where it has no such step."""
    steps = (replace(step, task=_small(score)) if step.key == key else step for step in ledger.steps)
    return replace(ledger, steps=tuple(steps))


def accuracy_change(ledger: Ledger, step: LedgerStep) -> tuple[float, float] | None:
    """Return how much more of the questions a step's model gets right than the uncut one, with its paired error.

    Shares of all questions; None where the two were not scored on the same ones, NaN for an error that is not known.
    """
    uncut = ledger.step("uncut")
    before, after = (uncut.task if uncut is not None else None), ledger.task(step)
    if before is None or after is None or step is uncut:
        return None
    if not before.right or len(before.right) != len(after.right):
        return after.accuracy - before.accuracy, math.nan
    changes = [int(new) - int(old) for old, new in zip(before.right, after.right, strict=True)]
    return mean_and_stderr(changes)


def recovered_share(cut: Evaluation, treated: Evaluation) -> tuple[float, float]:
    """Return the share of the lost NLL that a treatment won back, 1 - (NLL - uncut) / (cut - uncut), and its error.

    1 is as good as uncut, 0 as bad as cut, below 0 worse. NaN where the cut lost nothing. The error is that of a ratio
    of two means over the same windows, to first order (delta method): the residuals of each window around the ratio.
    It is NaN with one window, or where the NLL of each window was not kept.
    """
    if cut.base is None:
        return math.nan, math.nan
    lost, left = cut.score.nll - cut.base.nll, treated.score.nll - cut.base.nll
    if not lost > 0 or not math.isfinite(left):
        return math.nan, math.nan
    windows = [np.asarray(s.window_nll, dtype=np.float64) for s in (cut.base, cut.score, treated.score)]
    if len({len(w) for w in windows}) > 1 or len(windows[0]) < 2:
        return 1 - left / lost, math.nan
    uncut, worse, better = windows
    residuals = (better - uncut) - left / lost * (worse - uncut)
    return 1 - left / lost, mean_and_stderr(residuals)[1] / lost


def gain(ledger: Ledger, step: LedgerStep) -> tuple[LedgerStep, float, float]:
    """Return (what a treated step began from, its change in NLL from there, the paired error), in nats.

    That is the step of all treatments but the last, where the ledger has it, else the cut. The change is negative where
    the step is better; the error is NaN with one window or where the NLL of each window was not kept.
    """
    before = next((s for s in ledger.steps if s.treatments and s.methods == step.methods[:-1]), ledger.steps[1])
    new, old = step.evaluation.score, before.evaluation.score
    return before, new.nll - old.nll, paired_stderr(new.window_nll, old.window_nll)


def not_better(ledger: Ledger, step: LedgerStep) -> str:
    """Return in a sentence why a treated step is not better than what it began from; "" where it is, on this text.

    It is better where its change in NLL, paired over the ledger's windows, is below zero by more than two of its
    errors. What was fitted is better on its own held-out rows, or it would not be here; this is the text that counts.
    """
    if not step.treatments:
        return ""
    before, change, error = gain(ledger, step)
    if change + 2 * error < 0:
        return ""
    told = f"NLL {with_error(change, error, sign=True)} nats against {before.label}"
    windows = counted(step.evaluation.score.windows, "window")
    if math.isnan(error):
        why = f"cannot be told from what it began from: {told}, and {windows} without a paired error"
    elif change - 2 * error > 0:
        why = f"is worse than what it began from: {told}, paired over {windows}"
    else:
        why = f"is no better than what it began from: {told}, paired over {windows}, two errors include zero"
    return f"On {ledger.text.source}, {step.label} {why}."


def verdicts(ledger: Ledger) -> tuple[str, ...]:
    """Return what speaks against treated steps of a ledger, a sentence each: said before all that speaks for them."""
    return tuple(words for step in ledger.steps if (words := not_better(ledger, step)))


def _small(task: TaskScore | None) -> TaskScore | None:
    """Return a score without its answers to each question, which would be most of run.json."""
    return replace(task, predictions=()) if task is not None else None
