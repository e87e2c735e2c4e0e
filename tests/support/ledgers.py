"""Ledgers by formula, for tests of what is kept and shown; never of numbers that were measured."""

from dataclasses import replace

import numpy as np

from shortviz.records.ledger import Ledger, Treatment, add_step, start_ledger
from shortviz.records.measured import Evaluation
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from tests.support.records import fixture_evaluation, fixture_model, fixture_text

WINDOWS = 16
REPAIR = Treatment(
    kind="repair", method="seam_refit", settings={"ridge": 0.3, "applied": True}, text=fixture_text(64), seconds=41.0
)
HEAL = Treatment(
    kind="heal",
    method="lora",
    settings={"rank": 16, "steps": 200},
    text=fixture_text(400),
    seconds=630.0,
    note="Stopped early; the best step is kept.",
)


def windows_nll(shift: float, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """NLL by window: what the text is like, a step's own shift, and a little of its own."""
    text = np.random.default_rng(7).normal(3.6, 0.3, WINDOWS)
    return text + shift + np.random.default_rng(seed).normal(0, noise, WINDOWS)


def with_windows(evaluation: Evaluation, own: np.ndarray, base: np.ndarray) -> Evaluation:
    """The evaluation with these windows behind its score and that of the uncut model."""
    assert evaluation.base is not None

    def score(of, values):
        error = float(values.std(ddof=1) / np.sqrt(len(values)))
        return replace(of, nll=float(values.mean()), nll_stderr=error, window_nll=tuple(map(float, values)))

    change = own - base
    return replace(
        evaluation,
        score=score(evaluation.score, own),
        base=score(evaluation.base, base),
        nll_increase=float(change.mean()),
        nll_increase_stderr=float(change.std(ddof=1) / np.sqrt(len(change))),
    )


def fixture_ledger(model: ModelInfo | None = None, block: Block | None = None, *, healed: bool = True) -> Ledger:
    """Uncut, cut (+0.65), repaired (+0.4) and healed (+0.2), each with windows of its own."""
    model, block = model or fixture_model(30), block or Block(start=12, n=4)
    plain = fixture_evaluation(model, block)
    base = windows_nll(0.0, seed=1)
    ledger = start_ledger(
        with_windows(plain, windows_nll(0.65, seed=2), base), prompt="The capital of France is", cut_text=" a city"
    )
    ledger = add_step(ledger, "repaired", with_windows(plain, windows_nll(0.4, seed=3), base), [REPAIR])
    if healed:
        ledger = add_step(ledger, "healed", with_windows(plain, windows_nll(0.2, seed=4), base), [REPAIR, HEAL])
    return ledger
