"""What the app knows of a cut and of what was done after it: records and look-ups, no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shortviz.heal_settings import HealHistory
from shortviz.ledger import Ledger, LedgerStep
from shortviz.ledger_steps import start_ledger
from shortviz.records import Evaluation, ModelInfo, ModelRef, PrunePlan, Run, TextSpec
from shortviz.ui.resources import Bench
from shortviz.ui.shown import Shown

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle

METHODS = {"seam_refit": "Seam refit", "linear_fold": "Linear fold", "scale": "Scale"}
"""The repairs that the app offers, by the names of `shortviz.repair`."""
TREATING = ("repair", "heal")
"""Kinds of jobs that add to the ledger of a cut; `shrink` finds a cut of its own."""
LOOKING = ("ask", "bring")
"""Kinds of jobs on the models that a ledger has: asking them questions, bringing one back."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Treating:
    """A repair or a healing as it goes, and what it came to."""

    ledger: Ledger | None = None
    history: HealHistory | None = None
    note: str = ""
    """Why nothing was kept, where nothing was."""
    removed: tuple[int, ...] = ()
    """The cut that `shrink` ended with; elsewhere that of the ledger."""


def ledger_of(run: Run | None, removed: tuple[int, ...]) -> Ledger | None:
    """Return the run's newest ledger of a cut, whatever text it was scored on."""
    found = [ledger for ledger in run.ledgers if ledger.removed == removed] if run is not None else []
    return found[-1] if found else None


def known_ledger(bench: Bench, shown: Shown, removed: tuple[int, ...], spec: TextSpec) -> Ledger | None:
    """Return the ledger of a cut as far as it is known: from the run, or its first two steps from an evaluation."""
    found = ledger_of(shown.run, removed)
    if found is not None:
        return found
    evaluation = bench.measured.get((shown.ref, spec, removed)) if shown.ref is not None else None
    if evaluation is None and shown.run is not None:
        evaluation = shown.run.evaluation_of(removed)
    if evaluation is None or evaluation.base is None or not evaluation.removed:
        return None
    return start_ledger(evaluation)


def paired(evaluation: Evaluation | None) -> bool:
    """Return whether an evaluation kept what paired errors of other steps are made of."""
    return (
        evaluation is not None
        and evaluation.complete
        and evaluation.base is not None
        and len(evaluation.score.window_nll) == len(evaluation.base.window_nll) == evaluation.score.windows
    )


def treated(bench: Bench, ref: ModelRef | None, removed: tuple[int, ...], step: LedgerStep) -> "ModelHandle | None":
    """Return the model of a treated step where it is still in memory."""
    return bench.treated.get((ref, removed, step.methods)) if ref is not None else None


def text_key(ref: ModelRef, removed: tuple[int, ...], methods: tuple[str, ...], prompt: str) -> tuple[object, ...]:
    """Return where a continuation is kept; that of an untreated model is shared with the map's inspector."""
    return (ref, removed, methods, prompt) if methods else (ref, removed, prompt)


def cut_problem(model: ModelInfo, removed: tuple[int, ...]) -> str:
    """Return why a cut cannot be repaired or healed, in a sentence; "" where it can be tried."""
    if len(removed) >= model.num_layers:
        return f"The cut removes all {model.num_layers} layers; choose fewer."
    blocks = PrunePlan(num_layers=model.num_layers, removed=removed).blocks
    reasons = [reason for block in blocks if (reason := model.illegal_reason(block))]
    return f"This cut cannot be made: {reasons[0]}" if reasons else ""
