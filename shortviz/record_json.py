"""Evaluations and ledgers as JSON objects, and back; NaN as null. No torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from shortviz.curve import CurveLine, CurvePoint, GreedyRemoval
from shortviz.ledger import Ledger, LedgerStep, Treatment
from shortviz.ledger_steps import accuracy_change
from shortviz.records import Evaluation, RowsNeeded, Score, TaskScore, TextInfo

_NUMBERS = ("accuracy", "accuracy_stderr", "accuracy_norm", "accuracy_norm_stderr", "chance", "majority")


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation in the shape that `shortviz evaluate --json` prints; NaN as null."""
    extra = {f.name: getattr(evaluation, f.name) for f in fields(evaluation) if f.name not in ("score", "text", "base")}
    base = None if evaluation.base is None else score_json(evaluation.base)
    found = score_json(evaluation.score) | {"base": base, "text": asdict(evaluation.text)} | extra
    return dict(finite(found | {"removed": list(evaluation.removed)}))


def read_evaluation(found: Mapping[str, Any]) -> Evaluation:
    """Return the evaluation that `evaluation_json` wrote."""
    plain = ("nll_increase", "kl", "same_top1", "complete")
    return Evaluation(
        score=read_score(found),
        text=TextInfo(**found["text"]),
        removed=tuple(found["removed"]),
        base=None if found["base"] is None else read_score(found["base"]),
        nll_increase_stderr=None if found["base"] is None else number(found["nll_increase_stderr"]),
        kl_stderr=None if found["base"] is None else number(found["kl_stderr"]),
        # Not in records of before 2026-11-24.
        same_top1_stderr=None if found["same_top1"] is None else number(found.get("same_top1_stderr")),
        **{name: found[name] for name in plain},
    )


def score_json(score: Score) -> dict[str, Any]:
    """Return a score with its perplexity; the NLL of each window where it was kept."""
    found = {"perplexity": score.perplexity, "perplexity_stderr": score.perplexity_stderr} | asdict(score)
    return dict(finite(found | {"window_nll": list(score.window_nll)}))


def read_score(found: Mapping[str, Any]) -> Score:
    """Return the score that `score_json` wrote, or an older version without the NLL of each window."""
    values = {f.name: found[f.name] for f in fields(Score) if f.name != "window_nll"}
    kept = tuple(float(value) for value in found.get("window_nll", ()))
    return Score(**values | {"nll_stderr": number(found["nll_stderr"]), "window_nll": kept})


def ledger_json(ledger: Ledger) -> dict[str, Any]:
    """Return a ledger as `run.json` holds it: the cut, the text, the steps in order."""
    return {
        "removed": list(ledger.removed),
        "text": asdict(ledger.text),
        "prompt": ledger.prompt,
        "steps": [_step_json(ledger, step) for step in ledger.steps],
    }


def read_ledger(found: Mapping[str, Any]) -> Ledger:
    """Return the ledger that `ledger_json` wrote."""
    return Ledger(
        removed=tuple(int(layer) for layer in found["removed"]),
        text=TextInfo(**found["text"]),
        prompt=str(found["prompt"]),
        steps=tuple(_read_step(step) for step in found["steps"]),
    )


def _step_json(ledger: Ledger, step: LedgerStep) -> dict[str, Any]:
    numbers = {"recovered": step.recovered, "recovered_stderr": step.recovered_stderr}
    change, error = accuracy_change(ledger, step) or (None, None)
    return {
        "name": step.name,
        "evaluation": evaluation_json(step.evaluation),
        "treatments": [treatment_json(treatment) for treatment in step.treatments],
        **finite(numbers),
        "task": None if step.task is None else task_json(step.task),
        **finite({"accuracy_change": change, "accuracy_change_stderr": error}),
        "continuation": step.continuation,
    }


def _read_step(found: Mapping[str, Any]) -> LedgerStep:
    treatments = tuple(read_treatment(each) for each in found["treatments"])
    return LedgerStep(
        name=found["name"],
        evaluation=read_evaluation(found["evaluation"]),
        treatments=treatments,
        recovered=number(found["recovered"]) if treatments else None,
        recovered_stderr=number(found["recovered_stderr"]) if treatments else None,
        task=None if found["task"] is None else read_task_score(found["task"]),
        continuation=found["continuation"],
    )


def treatment_json(treatment: Treatment) -> dict[str, Any]:
    """Return a repair or healing as JSON; settings that are not finite become null."""
    return {
        "kind": treatment.kind,
        "method": treatment.method,
        "settings": finite(dict(treatment.settings)),
        "text": None if treatment.text is None else asdict(treatment.text),
        "seconds": treatment.seconds,
        "note": treatment.note,
    }


def read_treatment(found: Mapping[str, Any]) -> Treatment:
    """Return the treatment that `treatment_json` wrote."""
    text = None if found["text"] is None else TextInfo(**found["text"])
    return Treatment(**{**found, "text": text})


def task_json(task: TaskScore) -> dict[str, Any]:
    """Return a task score without its answers to each question."""
    values = {f.name: getattr(task, f.name) for f in fields(task) if f.name != "predictions"}
    return finite(values | {"removed": list(task.removed)})


def read_task_score(found: Mapping[str, Any]) -> TaskScore:
    """Return the score that `task_json` wrote."""
    return TaskScore(**{**found, "removed": tuple(found["removed"])} | {name: number(found[name]) for name in _NUMBERS})


def rows_needed_json(found: RowsNeeded) -> dict[str, Any]:
    """Return how many rows a choice needs."""
    return asdict(found) | {"agree": found.agree.tolist()}


def read_rows_needed(found: Mapping[str, Any]) -> RowsNeeded:
    """Return what `rows_needed_json` wrote."""
    tuples = {name: tuple(found[name]) for name in ("counts", "needed")}
    return RowsNeeded(rows=found["rows"], orders=found["orders"], agree=np.array(found["agree"]), **tuples)


def number(value: float | None) -> float:
    """Return a number, NaN for null."""
    return math.nan if value is None else float(value)


def greedy_json(greedy: GreedyRemoval) -> dict[str, Any]:
    """Return greedy removal with the loss after each step."""
    return finite(asdict(greedy))


def read_greedy(found: Mapping[str, Any]) -> GreedyRemoval:
    """Return what `greedy_json` wrote."""
    points = tuple(
        CurvePoint(n=p["n"], removed=tuple(p["removed"]), nll=p["nll"], stderr=number(p["stderr"]))
        for p in found["line"]["points"]
    )
    line = CurveLine(strategy=found["line"]["strategy"], label=found["line"]["label"], points=points)
    return GreedyRemoval(line=line, text=TextInfo(**found["text"]), complete=found["complete"])


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values, and all that is in them, with null for NaN and Inf, which JSON does not have."""
    return {key: _finite(value) for key, value in values.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return finite(value)
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
