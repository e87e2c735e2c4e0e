"""Tasks of lm_eval, where it is installed, on a model in memory, with the metric of each sample where it keeps that."""

import copy
import difflib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from shortviz.errors import ShortvizError, TextError
from shortviz.model.handle import ModelHandle
from shortviz.records.ledger import HarnessScore


@dataclass(frozen=True, kw_only=True, eq=False)
class Harness:
    """Tasks that lm_eval knows."""

    tasks: tuple[str, ...]
    version: str
    manager: Any
    """lm_eval's own."""

    def score(self, handle: ModelHandle, task: str, limit: int | None = None) -> tuple[HarnessScore, ...]:
        """Return every metric of one task (of each of its parts, where it is a group) as lm_eval gives it."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        with handle.lock:  # the tokenizer is changed by lm_eval, the model is not
            model = HFLM(pretrained=handle.model, tokenizer=copy.deepcopy(handle.tokenizer), batch_size=8)
            found = simple_evaluate(
                model=model, tasks=[task], task_manager=self.manager, limit=limit, bootstrap_iters=100
            )
        scores = []
        for name, results in found["results"].items():
            samples = sorted(found.get("samples", {}).get(name, ()), key=lambda sample: sample["doc_id"])
            for key, value in results.items():
                metric, _, kind = key.partition(",")
                if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                    continue
                error = results.get(f"{metric}_stderr,{kind}")
                marks = [sample.get(metric) for sample in samples if sample.get("filter", kind) == kind]
                whole = bool(marks) and all(isinstance(mark, int | float) for mark in marks)
                scores.append(
                    HarnessScore(
                        task=name, metric=metric if kind == "none" else f"{metric} ({kind})", value=float(value),
                        stderr=float(error) if isinstance(error, int | float) else math.nan, version=self.version,
                        limit=limit, marks=tuple(map(float, marks)) if whole else (),
                    )
                )  # fmt: skip
        return tuple(scores)


def open_harness(tasks: Sequence[str]) -> Harness:
    """Return lm_eval with these tasks, by their names or as .yaml files.

    Raises ShortvizError where it is not installed, TextError for a task that it does not know.
    """
    try:
        known_as = version("lm_eval")
        from lm_eval.tasks import TaskManager
    except (PackageNotFoundError, ImportError) as error:
        raise ShortvizError(f"lm_eval is not installed here ({error}); run pip install shortviz[eval].") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    files = {task: Path(task).expanduser() for task in tasks if task.endswith(".yaml")}
    if missing := [str(path) for path in files.values() if not path.is_file()]:
        raise TextError(f"There is no task file {missing[0]}; name a task of lm_eval or a .yaml file.")
    folders = sorted({str(path.parent) for path in files.values()})
    manager = TaskManager(include_path=folders or None, include_defaults=len(files) < len(tasks))
    names = [_name_in(files[task]) if task in files else task for task in tasks]
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            told = f"did you mean {near[0]}?" if near else "see lm_eval ls tasks."
            raise TextError(f"lm_eval {known_as} knows no task {name!r}; {told}")
    return Harness(tasks=tuple(names), version=known_as, manager=manager)


def _name_in(path: Path) -> str:
    """Return what a file of a task calls it; its other fields may have tags that only lm_eval reads."""
    found = next((line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("task:")), "")
    name = yaml.safe_load(found.partition(":")[2] or '""')
    return str(name)
