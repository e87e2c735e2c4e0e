"""Building a ledger from evaluations on the same windows, with the share of the lost NLL won back. No torch."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shortviz.errors import ShortvizError
from shortviz.records.ledger import Ledger, LedgerStep, StepName, Treatment
from shortviz.records.measured import Evaluation
from shortviz.records.sums import mean_and_stderr
from shortviz.records.text import TaskScore

_ORDER: tuple[StepName, ...] = ("uncut", "cut", "repaired", "healed")


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
    _check_same(ledger, cut.evaluation, evaluation)
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
    key = (step.name, step.methods)
    others = [s for s in ledger.steps if (s.name, s.methods) != key]
    return replace(ledger, steps=tuple(sorted([*others, step], key=lambda s: _ORDER.index(s.name))))


def merged(old: Ledger, new: Ledger) -> Ledger:
    """Return `new` with the treated steps of `old` that it does not have, of the same cut and windows."""
    have = {(s.name, s.methods) for s in new.steps}
    kept = [s for s in old.steps if s.treatments and (s.name, s.methods) not in have]
    if not math.isclose(_nll_cut(old), _nll_cut(new), abs_tol=1e-6):
        kept = []  # measured anew with another result: shares against another loss do not belong beside these
    if new.prompt and old.prompt != new.prompt:
        kept = [replace(step, continuation="") for step in kept]
    steps = sorted([*kept, *(_with_old_task(step, old) for step in new.steps)], key=lambda s: _ORDER.index(s.name))
    return replace(new, steps=tuple(steps), prompt=new.prompt or old.prompt)


def _with_old_task(step: LedgerStep, old: Ledger) -> LedgerStep:
    """Return an untreated step with the accuracy it had: its model is the same. A treated one was made anew."""
    known = old.step(step.name, step.methods)
    return step if step.treatments or step.task is not None or known is None else replace(step, task=known.task)


def with_task_score(ledger: Ledger, name: StepName, methods: tuple[str, ...], score: TaskScore) -> Ledger:
    """Return the ledger with the accuracy of one of its steps; nothing changes where it has no such step."""
    return replace(
        ledger,
        steps=tuple(
            replace(step, task=_small(score)) if (step.name, step.methods) == (name, methods) else step
            for step in ledger.steps
        ),
    )


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


def _check_same(ledger: Ledger, cut: Evaluation, treated: Evaluation) -> None:
    if treated.removed != ledger.removed:
        raise ShortvizError(
            f"This model lacks layers {list(treated.removed)}, the ledger is of the cut {list(ledger.removed)}; "
            "start a ledger for each cut."
        )
    if treated.text.fingerprint != ledger.text.fingerprint or treated.score.windows != cut.score.windows:
        raise ShortvizError(
            f"The treated model was scored on {treated.score.windows} windows of {treated.text.source}, the cut one on "
            f"{cut.score.windows} of {ledger.text.source}; score both on the same windows."
        )


def _nll_cut(ledger: Ledger) -> float:
    step = ledger.step("cut")
    return step.evaluation.score.nll if step is not None else math.nan


def _small(task: TaskScore | None) -> TaskScore | None:
    """Return a score without its answers to each question, which would be most of run.json."""
    return replace(task, predictions=()) if task is not None else None
