"""Write docs/teaching.md from its template and the bundled numbers: `python tools/make_teaching_sheet.py`."""

from pathlib import Path

from shortviz.analysis.planning import best_starts
from shortviz.lessons.data import KINDS, lesson_data
from shortviz.records.formatting import layer_words
from shortviz.records.plan import Block
from shortviz.runs.run import example_run

TOOLS = Path(__file__).resolve().parent
TEMPLATE, SHEET = TOOLS / "teaching_template.md", TOOLS.parent / "docs" / "teaching.md"


def facts() -> dict[str, str]:
    """Return every number of the sheet, by its name in the template."""
    run, data = example_run(), lesson_data()
    assert run.distances is not None
    assert run.losses is not None
    grid, losses, norms = run.distances.criteria["angular_last"], run.losses, run.distances.norms
    increase, sentence, block = losses.increase, data.sentence, Block(start=12, n=4)
    predicted, measured = best_starts(grid, run.model), best_starts(increase, run.model)
    sink = norms.sink_layers[0]
    found = {
        "rows": str(data.text.rows),
        "row_tokens": str(data.text.max_length),
        "source": data.text.source,
        "hidden": str(run.model.hidden_size),
        "cells": str(grid.num_layers * (grid.num_layers + 1) // 2),
        "loss_tokens": f"{losses.text.tokens:,}",
        "loss_source": losses.text.source,
        "sink": str(sink),
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
        "questions": str(len(data.questions)),
    }
    for n in (1, 4, 8):
        found[f"predicted_{n}"] = layer_words(predicted[n], n)
        found[f"predicted_{n}_angle"] = f"{grid.at(Block(start=predicted[n], n=n))[0]:.3f}"
        found[f"predicted_{n}_loss"] = f"{increase.at(Block(start=predicted[n], n=n))[0]:+.2f}"
        found[f"measured_{n}"] = layer_words(measured[n], n)
        found[f"measured_{n}_loss"] = f"{increase.at(Block(start=measured[n], n=n))[0]:+.2f}"
    for name, layer in (("below", sink - 1), ("at", sink), ("above", sink + 1)):
        one = Block(start=layer, n=1)
        found[f"{name}_layer"] = str(layer)
        found[f"{name}_angle"] = f"{grid.at(one)[0]:.3f}"
        found[f"{name}_loss"] = f"{increase.at(one)[0]:+.2f}"
        found[f"{name}_ranks"] = f"{grid.rank(one)} and {increase.rank(one)} of {grid.num_layers}"
    rows = [
        f"| {answers.label} | " + " | ".join(str(data.right(answers, kind)[0]) for kind in KINDS) + " |"
        for answers in data.answers
    ]
    return found | {"answers": "\n".join(rows), "of_each": str(data.right(data.answers[0], KINDS[0])[1])}


def sheet() -> str:
    """Return the whole sheet."""
    return TEMPLATE.read_text(encoding="utf-8").format(**facts())


if __name__ == "__main__":
    SHEET.write_text(sheet(), encoding="utf-8")
