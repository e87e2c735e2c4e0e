"""The run directory: everything measured for one (model, text), as run.json. Opened without torch."""

import json
import platform
import re
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from shortviz.atomic import write_atomically
from shortviz.errors import RunError
from shortviz.grid_json import distances_json, losses_json, read_distances, read_losses
from shortviz.ledger import Ledger
from shortviz.ledger_steps import merged
from shortviz.record_json import (
    evaluation_json,
    finite,
    greedy_json,
    ledger_json,
    read_evaluation,
    read_greedy,
    read_ledger,
    read_task_score,
    task_json,
)
from shortviz.records import (
    Evaluation,
    ModelInfo,
    Run,
    TaskScore,
    TextInfo,
)

__all__ = [
    "evaluation_json",
    "example_run",
    "folder_name",
    "load_run",
    "new_run",
    "parse_run",
    "run_json",
    "save_run",
    "versions",
    "with_evaluation",
    "with_ledger",
    "with_task",
]

SCHEMA = 1
FILE = "run.json"
EXAMPLES = {"example": FILE, "example-passages": "passages.json"}
"""File in the package of each bundled run, by key."""


def versions() -> dict[str, str]:
    """Return the versions that the numbers depend on."""
    packages = ("shortviz", "torch", "transformers", "numpy")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def new_run(model: ModelInfo, text: TextInfo, name: str = "") -> Run:
    """Return an empty run of a model and a calibration text, stamped with the time and versions of now."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Run(model=model, text=text, versions=versions(), created=created, name=name)


def run_json(run: Run) -> dict[str, Any]:
    """Return the run in the shape of run.json; `mean[n-1][start]`, row n-1 has L-n+1 entries, NaN as null."""
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "name": run.name,
        "created": run.created,
        "model": finite(asdict(run.model)),
        "text": asdict(run.text),
        "versions": dict(run.versions),
    }
    if run.distances is not None:
        found |= distances_json(run.distances)
    if run.losses is not None:
        found["losses"] = losses_json(run.losses)
    found["evaluations"] = [evaluation_json(e) for e in run.evaluations]
    if run.ledgers:
        found["ledgers"] = [ledger_json(ledger) for ledger in run.ledgers]
    if run.greedy is not None:
        found["greedy"] = greedy_json(run.greedy)
    if run.tasks:
        found["tasks"] = [task_json(task) for task in run.tasks]
    return found


def save_run(run: Run, folder: Path) -> None:
    """Write the run into a folder, made if need be; a kill at any moment leaves the old run or the new one.

    Raises RunError where the folder holds a run of another model or text, ResourceError where it cannot be written.
    """
    target = folder / FILE
    if target.exists():
        old = load_run(folder)
        models = [(m.id, m.revision, m.dtype) for m in (old.model, run.model)]
        other_model = models[0] != models[1]
        other_text = old.distances is not None and old.text.fingerprint != run.text.fingerprint
        if other_model or other_text:
            raise RunError(
                f"{folder} holds a run of {old.model.id} ({old.model.dtype}) on {old.text.source}; "
                "choose another --out for this one."
            )
    content = json.dumps(run_json(run), allow_nan=False).encode()
    write_atomically(target, lambda file: file.write(content))


def load_run(folder: Path) -> Run:
    """Return the run saved in a folder; raises RunError where there is none or it cannot be read."""
    target = folder / FILE
    try:
        text = target.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"There is no run in {folder} ({error.strerror}); name a folder that holds {FILE}.") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{target} is not a run of shortviz (it is not UTF-8 text).") from error
    return parse_run(text, str(target))


def parse_run(text: str, where: str) -> Run:
    """Return the run that a run.json text describes; raises RunError naming `where` and what is wrong."""
    try:
        found = json.loads(text)
        if found["schema"] != SCHEMA:
            raise RunError(f"{where} has schema {found['schema']}, this version reads {SCHEMA}; upgrade shortviz.")
        model = ModelInfo(
            **found["model"]
            | {k: tuple(found["model"][k]) for k in ("layer_parameters", "layer_bytes", "layer_cache_bytes")}
            | {"illegal": tuple((int(s), int(n), str(r)) for s, n, r in found["model"].get("illegal", ()))}
        )
        info = TextInfo(**found["text"])
        return Run(
            model=model,
            text=info,
            distances=read_distances(found, model.num_layers, info),
            losses=read_losses(found["losses"], model.num_layers) if found.get("losses") else None,
            evaluations=tuple(read_evaluation(e) for e in found["evaluations"]),
            ledgers=tuple(read_ledger(each) for each in found.get("ledgers", ())),
            greedy=read_greedy(found["greedy"]) if found.get("greedy") else None,
            tasks=tuple(read_task_score(task) for task in found.get("tasks", ())),
            versions=found["versions"],
            created=found["created"],
            name=found["name"],
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise RunError(f"{where} is not a run of shortviz ({type(error).__name__}: {error}).") from error


def example_run(key: str = "example") -> Run:
    """Return a bundled run of the demo model, measured by this code; `key` is one of EXAMPLES."""
    file = resources.files("shortviz") / "example_run" / EXAMPLES[key]
    return parse_run(file.read_text(encoding="utf-8"), "the bundled run")


def has_example(key: str = "example") -> bool:
    """Return whether this installation carries the bundled run; a bare checkout may not."""
    return (resources.files("shortviz") / "example_run" / EXAMPLES[key]).is_file()


def with_evaluation(run: Run, evaluation: Evaluation) -> Run:
    """Return the run with an evaluation added; it takes the place of one of the same layers on the same text."""
    key = (evaluation.removed, evaluation.text.fingerprint)
    others = [e for e in run.evaluations if (e.removed, e.text.fingerprint) != key]
    return replace(run, evaluations=(*others, evaluation))


def with_ledger(run: Run, ledger: Ledger) -> Run:
    """Return the run with a ledger added to that of the same cut and text: new steps replace those of their kind.

    What the uncut and the cut model answered stands among the run's accuracies too.
    """
    for step in ledger.steps:
        run = with_task(run, step.task) if step.task is not None and not step.treatments else run
    key = (ledger.removed, ledger.text.fingerprint)
    same = [old for old in run.ledgers if (old.removed, old.text.fingerprint) == key]
    others = [old for old in run.ledgers if (old.removed, old.text.fingerprint) != key]
    return replace(run, ledgers=(*others, merged(same[-1], ledger) if same else ledger))


def with_task(run: Run, score: TaskScore) -> Run:
    """Return the run with an accuracy added; it takes the place of one of the same cut on the same questions."""
    key = (score.removed, score.fingerprint)
    others = [old for old in run.tasks if (old.removed, old.fingerprint) != key]
    return replace(run, tasks=(*others, replace(score, predictions=())))


def folder_name(run: Run) -> str:
    """Return a folder name for a run: model, text fingerprint, readable and safe on every system."""
    model = re.sub(r"[^A-Za-z0-9.-]+", "-", run.model.id).strip("-.")[-60:] or "model"
    return f"{model}-{run.text.fingerprint[:12]}"
