"""Every number of the lessons and of the teacher's sheet by its name, from the bundled run and the lessons' data."""

from typing import Any

import numpy as np

from shortviz.analysis.evidence import mcnemar
from shortviz.analysis.planning import best_starts
from shortviz.lessons.data import KINDS, Answers, LessonData
from shortviz.records.formatting import layer_words, layers_text, percent, with_error
from shortviz.records.ledger import Ledger, LedgerStep
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.records.sums import ratio_and_stderr


def facts(run: Run, data: LessonData) -> dict[str, Any]:
    """Return the numbers, most of them written as people read them."""
    assert run.distances is not None
    assert run.losses is not None
    grid, losses, norms = run.distances.criteria["angular_last"], run.losses, run.distances.norms
    increase, sentence, block = losses.increase, data.sentence, Block(start=12, n=4)
    predicted, measured = best_starts(grid, run.model), best_starts(increase, run.model)
    sink = norms.sink_layers[0]
    found: dict[str, Any] = {
        "rows": data.text.rows,
        "row_tokens": data.text.max_length,
        "source": data.text.source,
        "hidden": run.model.hidden_size,
        "layers": run.model.num_layers,
        "cells": grid.num_layers * (grid.num_layers + 1) // 2,
        "loss_tokens": f"{losses.text.tokens:,}",
        "loss_source": losses.text.source,
        "sink": sink,
        "first_before": f"{norms.first[sink]:,.0f}",
        "first_after": f"{norms.first[sink + 1]:,.0f}",
        "rest_after": f"{norms.rest[sink + 1]:,.0f}",
        "sentence": sentence.text,
        "dot": f"{sentence.gram[12, 16]:.1f}",
        "norm_12": f"{sentence.norms[-1][12]:.2f}",
        "norm_16": f"{sentence.norms[-1][16]:.2f}",
        "cosine": f"{sentence.cosine(block):.4f}",
        "angle": f"{sentence.angle(block):.4f}",
        "degrees": f"{180 * sentence.angle(block):.1f}",
        "position_0": f"{data.positions[0].grid.at(block)[0]:.4f}",
        "position_last": f"{data.positions[-1].grid.at(block)[0]:.3f}",
        "questions": len(data.questions),
        "of_each": data.right(data.answers[0], KINDS[0])[1],
    }
    for n in (1, 4, 8):
        found[f"predicted_{n}"] = layer_words(predicted[n], n)
        found[f"predicted_{n}_angle"] = f"{grid.at(Block(start=predicted[n], n=n))[0]:.3f}"
        found[f"predicted_{n}_loss"] = f"{increase.at(Block(start=predicted[n], n=n))[0]:+.2f}"
        found[f"measured_{n}"] = layer_words(measured[n], n)
        found[f"measured_{n}_loss"] = f"{increase.at(Block(start=measured[n], n=n))[0]:+.2f}"
    for name, layer in (("below", sink - 1), ("at", sink), ("above", sink + 1)):
        one = Block(start=layer, n=1)
        found[f"{name}_layer"] = layer
        found[f"{name}_angle"] = f"{grid.at(one)[0]:.3f}"
        found[f"{name}_loss"] = f"{increase.at(one)[0]:+.2f}"
        found[f"{name}_ranks"] = f"{grid.rank(one)} and {increase.rank(one)} of {grid.num_layers}"
    rows = [
        f"| {answers.label} | " + " | ".join(str(data.right(answers, kind)[0]) for kind in KINDS) + " |"
        for answers in data.answers
    ]
    return found | {"answers": "\n".join(rows)}


def recovery(data: LessonData, ledger: Ledger) -> dict[str, Any]:
    """Return what each step of a cut won back of the loss and of the answers, and how sure the difference is.

    A share of answers is (right - cut) / (uncut - cut); its error is that of a ratio of two means over the same
    questions, to first order, as the share of the loss has over windows. `chance` is McNemar's exact p (two-sided, from
    the binomial) that healed and repaired differ so much in answers by chance.
    """
    found = {a.step: a for a in data.answers if a.step == "uncut" or a.removed == ledger.removed}
    if not {"uncut", "cut", "repaired", "healed"} <= set(found):
        return {"answered": False}
    steps: dict[str, LedgerStep] = {step.name: step for step in ledger.steps}
    right = {name: _right(data, answers) for name, answers in found.items()}
    lost = right["uncut"] - right["cut"]
    values: dict[str, Any] = {"answered": True, "cut_layers": layers_text(ledger.removed)}
    for name, marks in right.items():
        values[f"{name}_right"] = int(marks.sum())
    for name in ("repaired", "healed"):
        values[f"{name}_answers"] = percent(*ratio_and_stderr(right[name] - right["cut"], lost))
        values[f"{name}_loss"] = percent(steps[name].recovered, steps[name].recovered_stderr)
    gained = int(((right["healed"] - right["repaired"]) > 0).sum())
    given_up = int(((right["healed"] - right["repaired"]) < 0).sum())
    return values | {
        "gained": gained,
        "given_up": given_up,
        "chance": with_error(mcnemar(gained, given_up)),
        "told_apart": mcnemar(gained, given_up) < 0.05,
        "loss_fell": steps["healed"].evaluation.score.nll < steps["repaired"].evaluation.score.nll,
    }


def _right(data: LessonData, answers: Answers) -> "np.ndarray[Any, np.dtype[np.float64]]":
    pairs = zip(data.questions, answers.written, strict=True)
    return np.array([question.right(written) for question, written in pairs], dtype=np.float64)
