"""Whether a cut model is let through: the end of an interval of two errors against each limit of a gate.

It is for other people's automation, so a limit that the numbers leave open counts as not held. Nothing here prints.
"""

import math

from shortviz.errors import GateError
from shortviz.records.formatting import percent, with_error
from shortviz.records.measured import Evaluation, Gate, GateCheck, GateVerdict
from shortviz.records.text import TaskScore

ERRORS = 2
"""Standard errors between an estimate and the end of its interval that is judged."""


def judge(gate: Gate, evaluation: Evaluation | None, score: TaskScore | None) -> GateVerdict:
    """Return whether the limits are shown to be held by the increase in NLL (nats a token) and by the accuracy (share).

    Where all of q questions are right the binomial error is 0, which is no certainty: no error below 2 / (q + 4) is
    believed, so that the end is then that of Wilson's interval (Wilson 1927) of two errors, and one more wrong answer
    never gives a better end. A number that is missing, not finite, or has no error holds nothing.
    """
    checks = []
    if gate.max_nll_increase is not None:
        rise = evaluation.nll_increase if evaluation is not None else None
        error = evaluation.nll_increase_stderr if evaluation is not None else None
        checks.append(_check("max_nll_increase", gate.max_nll_increase, rise, error, up=True))
    if gate.min_accuracy is not None:
        share, error = (score.accuracy, score.accuracy_stderr) if score is not None else (None, None)
        if score is not None and error is not None and error < 2 / (score.questions + 4):
            error = 2 / (score.questions + 4)
        checks.append(_check("min_accuracy", gate.min_accuracy, share, error, up=False))
    return GateVerdict(held=all(check.held for check in checks), checks=tuple(checks))


def _check(name: str, limit: float, estimate: float | None, error: float | None, *, up: bool) -> GateCheck:
    value = math.nan if estimate is None else estimate
    off = math.nan if error is None else error
    end = value + ERRORS * off if up else value - ERRORS * off
    held = math.isfinite(end) and (end <= limit if up else end >= limit)
    return GateCheck(name=name, limit=limit, estimate=value, error=off, end=end, held=held)


def verdict_words(verdict: GateVerdict) -> str:
    """Return a verdict as one sentence: each limit, what was measured, and the end that was judged."""
    parts = [_words(check) for check in verdict.checks if check.held == verdict.held]
    return f"The gate is {'held' if verdict.held else 'not held'}: {'; '.join(parts)}."


def _words(check: GateCheck) -> str:
    if check.name == "min_accuracy":
        found, end, what = percent(check.estimate, check.error), percent(check.end), "accuracy"
        limit, side = f"{percent(check.limit)} (min_accuracy)", "at least"
    else:
        found, what = with_error(check.estimate, check.error, sign=True) + " nats", "NLL increase"
        end = f"{check.end:+.4f}"
        limit, side = f"{check.limit:g} (max_nll_increase)", "at most"
    side = side if check.held else f"not shown to be {side}"
    if not math.isfinite(check.end):
        return f"the {what} is {found} with no error to judge by, {side} {limit}"
    return f"the {what} is {found}, with two errors {end}, {side} {limit}"


def require(verdict: GateVerdict, after: str = "") -> None:
    """Raise GateError where a limit was not shown to be held; `after` says what that means for what was asked."""
    if not verdict.held:
        raise GateError(f"{verdict_words(verdict).rstrip('.')}{after}.", verdict)
