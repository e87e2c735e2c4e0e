"""Runs side by side in words, as a table and as JSON: how far a choice depends on its text. No torch."""

from collections.abc import Mapping
from typing import Any

from shortviz import criteria
from shortviz.errors import RunError
from shortviz.planning import best_start
from shortviz.records import BlockDistances, ModelInfo, Run
from shortviz.sensitivity import check_comparable, grid_difference, shift_words, start_shifts
from shortviz.settling import rows_needed_words
from shortviz.table import Table, left, right


def comparison_text(runs: Mapping[str, Run], criterion: str | None = None) -> str:
    """Return the best start of each n on every text, where it moves, and how many rows it needs.

    Raises RunError for fewer than two runs, runs of different models, or a criterion that one of them lacks.
    """
    measured, name = _checked(runs, criterion)
    model = next(iter(runs.values())).model
    letters = [chr(ord("A") + i) for i in range(len(measured))]
    rows = []
    for n in range(1, model.num_layers):
        starts = [best_start(one.criteria[name], n, model) for one in measured]
        moves = "" if len(set(starts)) == 1 else "moves"
        cells = [_start_words(one, name, n, start) for one, start in zip(measured, starts, strict=True)]
        rows.append([str(n), *cells, moves])
    lines = [f"Best start of each n by {criteria.label(name)}; in brackets the rows of text that the choice needs."]
    for letter, (folder, run), one in zip(letters, runs.items(), measured, strict=True):
        lines.append(f"  {letter}: {run.text.source}, {one.samples} rows of at most {run.text.max_length} ({folder})")
    lines += [Table(right("n", *letters) + left(""), rows).text(), ""]
    for letter, one in zip(letters[1:], measured[1:], strict=True):
        lines.append(
            f"A to {letter}: {shift_words(start_shifts(measured[0].criteria[name], one.criteria[name], model))}"
        )
    for letter, one in zip(letters, measured, strict=True):
        lines.append(f"{letter}: {_rows_needed_line(one, name, model)}")
    fingerprints = {one.text.fingerprint for one in measured}
    if len(fingerprints) < len(measured):
        lines.append("Note: some of the runs are of the same text.")
    models = dict.fromkeys(run.model.id for run in runs.values())
    if len(models) > 1:
        lines.append(
            f"Note: the runs are of different models ({', '.join(models)}): a move need not come from the text."
        )
    return "\n".join(lines)


def comparison_json(runs: Mapping[str, Run], criterion: str | None = None) -> dict[str, Any]:
    """Return the comparison, for one JSON object; differences are from the first run to each other one.

    Raises as `comparison_text`.
    """
    measured, name = _checked(runs, criterion)
    model = next(iter(runs.values())).model
    first = measured[0].criteria[name]
    return {
        "criterion": name,
        "model": model.id,
        "runs": [
            {
                "folder": folder,
                "model": run.model.id,
                "text": run.text,
                "best_starts": [best_start(one.criteria[name], n, model) for n in range(1, model.num_layers)],
                "rows_needed": [_needed(one, name, n) for n in range(1, model.num_layers)],
                "rows": one.samples,
            }
            for (folder, run), one in zip(runs.items(), measured, strict=True)
        ],
        "shifts": [start_shifts(first, one.criteria[name], model) for one in measured[1:]],
        "difference": [grid_difference(first, one.criteria[name], per_n=False) for one in measured[1:]],
        "difference_per_n": [grid_difference(first, one.criteria[name]) for one in measured[1:]],
    }


def _checked(runs: Mapping[str, Run], criterion: str | None) -> tuple[list[BlockDistances], str]:
    if len(runs) < 2:
        raise RunError(f"{len(runs)} run was named; name at least two different ones to compare.")
    first = next(iter(runs.values()))
    measured = []
    for folder, run in runs.items():
        check_comparable(first, run)
        if run.distances is None:
            raise RunError(f"{folder} holds no distances; measure them first (shortviz measure ... --out {folder}).")
        measured.append(run.distances)
    common = [name for name in measured[0].criteria if all(name in one.criteria for one in measured)]
    if not common:
        raise RunError("The runs have no criterion in common; measure one in all of them.")
    chosen = criterion or ("angular_last" if "angular_last" in common else common[0])
    if chosen not in common:
        raise RunError(f"Criterion {chosen!r} is not in all of the runs; choose from {', '.join(common)}.")
    return measured, chosen


def _start_words(one: BlockDistances, name: str, n: int, start: int | None) -> str:
    found = one.settling.get(name)
    if start is None:
        return "-"
    return f"{start} ({found.words(n)})" if found is not None else str(start)


def _needed(one: BlockDistances, name: str, n: int) -> int | None:
    """Return the rows that the choice needs; None where the rows there are do not say."""
    found = one.settling.get(name)
    return found.needed[n - 1] if found is not None and found.enough(n) else None


def _rows_needed_line(one: BlockDistances, name: str, model: ModelInfo) -> str:
    found = one.settling.get(name)
    if found is None:
        return "how many rows a choice needs was not recorded."
    sizes = [n for n in range(1, model.num_layers) if best_start(one.criteria[name], n, model) is not None]
    return rows_needed_words(found, sizes)
