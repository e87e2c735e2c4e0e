"""The run directory: everything measured for one (model, text), as run.json. Opened without torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from shortviz.errors import RunError
from shortviz.files import versions, write_atomically
from shortviz.records.json import from_json, from_plain, to_json
from shortviz.records.ledger import Ledger, merged
from shortviz.records.measured import Evaluation, Grid, Score
from shortviz.records.model import ModelInfo
from shortviz.records.run import Run
from shortviz.records.text import TaskScore, TextInfo

SCHEMA = 2
FILE = "run.json"
EXAMPLES = {"example": FILE, "example-passages": "passages.json"}
"""File in the package of each bundled run, by key."""


def new_run(model: ModelInfo, text: TextInfo, name: str = "") -> Run:
    """Return an empty run of a model and a calibration text, stamped with the time and versions of now."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Run(model=model, text=text, versions=versions(), created=created, name=name)


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
                "choose another folder for this one."
            )
    content = to_json(run)
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
        try:
            run = from_json(Run, text)
        except ValueError:
            old = json.loads(text)
            if not isinstance(old, dict) or old.get("schema", SCHEMA) == SCHEMA:
                raise
            if old["schema"] != 1:
                shown = str(old["schema"])[:20]
                raise RunError(f"{where} has schema {shown}, this version reads {SCHEMA}; upgrade shortviz.") from None
            run = from_plain(Run, _upgraded(old))
        _check_layers(run)
    except RecursionError:
        raise RunError(f"{where} is not a run of shortviz (it is nested too deeply).") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{where} is not a run of shortviz (nor as schema 1 has it: {error}).") from error
    except ValueError as error:
        raise RunError(f"{where} is not a run of shortviz ({error}).") from error
    return run


def _upgraded(old: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run of schema 1 as schema 2 has it; what is no run raises what `parse_run` catches."""
    size, ledgers = old["model"]["num_layers"], old.get("ledgers", ())
    same = ("name", "created", "model", "text", "versions", "greedy", "tasks")
    new = {key: old[key] for key in same if key in old}
    if old.get("distances"):
        new["distances"] = {"num_layers": size, "criteria": old["distances"]}
        beside = ("norms", "text", "seconds", "rows", "settling", "tokens_per_row")
        new["distances"] |= {key: old[key] for key in beside if key in old}
    if old.get("losses"):
        losses = dict(old["losses"])
        for name in ("nll", "increase", "kl"):
            losses[name] = {key: losses[name][key] for key in ("samples", "mean", "stderr")}
        counts = {"num_layers": size, "tokens": losses.pop("cell_tokens")}
        new["losses"] = losses | counts | {"base": _old_score(losses["base"])}
    new["evaluations"] = [_old_evaluation(one) for one in old["evaluations"]]
    new["ledgers"] = [each | {"steps": [_old_step(step) for step in each["steps"]]} for each in ledgers]
    return new


def _old_score(old: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: old[field.name] for field in fields(Score) if field.name in old}


def _old_evaluation(old: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation with its score apart, and null for NaN only: schema 1 said null where there was none too."""
    new = {field.name: old.get(field.name) for field in fields(Evaluation)}
    new = {name: value for name, value in new.items() if value is not None} | {"score": _old_score(old)}
    if old["base"] is not None:
        new = {"nll_increase_stderr": None, "kl_stderr": None} | new | {"base": _old_score(old["base"])}
    return {"same_top1_stderr": None} | new if "same_top1" in new else new


def _old_step(old: Mapping[str, Any]) -> dict[str, Any]:
    left_out = {"accuracy_change", "accuracy_change_stderr"}
    if not old["treatments"]:
        left_out |= {"recovered", "recovered_stderr"}
    return {key: value for key, value in old.items() if key not in left_out} | {
        "evaluation": _old_evaluation(old["evaluation"])
    }


def _check_layers(run: Run) -> None:
    """Raise ValueError where an array is not of the model's layers."""
    size, arrays, grids = run.model.num_layers, dict[str, Any](), dict[str, Grid]()
    if run.distances is not None:
        arrays |= {f"distances.norms.{name}": getattr(run.distances.norms, name)[1:] for name in ("first", "rest")}
        grids |= {f"distances.criteria.{name}": grid for name, grid in run.distances.criteria.items()}
    if run.losses is not None:
        arrays |= {f"losses.{name}": getattr(run.losses, name) for name in ("windows", "tokens")}
        grids |= {f"losses.{name}": getattr(run.losses, name) for name in ("nll", "increase", "kl")}
    arrays |= {f"{path}.{name}": getattr(grid, name) for path, grid in grids.items() for name in ("mean", "stderr")}
    sizes = {path: len(array) for path, array in arrays.items()}
    sizes |= {f"{name}.num_layers": one.num_layers for name in ("distances", "losses") if (one := getattr(run, name))}
    for path, found in sizes.items():
        if found != size:
            raise ValueError(f"{path}: it is of {found} layers, and the model has {size}")


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


def file_name(run: Run) -> str:
    """Return a name for the run as one file: its own, else of its model and text; safe on every system."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", run.name).strip("-.")[:60]
    return f"{name or folder_name(run)}.shortviz.zip"
