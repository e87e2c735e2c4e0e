"""What the commands accept of multiple-choice questions, and how it becomes a TaskSpec."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from shortviz.errors import TextError
from shortviz.records import TaskSpec


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Multiple-choice questions to score beside the loss."""

    tasks: Annotated[
        str | None, typer.Option(help="Multiple-choice rows: a .jsonl, .csv or .parquet file, or a data set id.")
    ] = None
    question: Annotated[str, typer.Option(help="--tasks: column of the question.")] = "question"
    choices: Annotated[str, typer.Option(help="--tasks: column of the list of choices, or one column each: a,b.")] = (
        "choices"
    )
    label: Annotated[str, typer.Option(help="--tasks: column of the right choice.")] = "label"
    first_label: Annotated[int, typer.Option(help="--tasks: the number that labels the first choice, 0 or 1.")] = 0
    prompt: Annotated[str, typer.Option(help="--tasks: what the model reads before a choice.")] = "{question}"
    task_limit: Annotated[int | None, typer.Option(help="--tasks: at most this many questions.")] = None
    task_subset: Annotated[str | None, typer.Option(help="--tasks: subset (configuration) of a data set.")] = None
    task_split: Annotated[str | None, typer.Option(help="--tasks: split of a data set.  [default: validation]")] = None

    def task(self) -> TaskSpec | None:
        """Return the questions that are asked for, None without --tasks; raises TextError for a bad option."""
        if self.tasks is None:
            return None
        is_file = names_file(self.tasks)
        if is_file and (self.task_subset is not None or self.task_split is not None):
            raise TextError(f"--task-subset and --task-split belong to a data set; {self.tasks} is a file.")
        return TaskSpec(
            kind="file" if is_file else "dataset",
            value=self.tasks,
            question=self.question,
            choices=tuple(name.strip() for name in self.choices.split(",")),
            label=self.label,
            first_label=self.first_label,
            prompt=self.prompt,
            limit=self.task_limit,
            subset=self.task_subset,
            split=self.task_split or "validation",
        )


def names_file(text: str) -> bool:
    """Tell a file of questions from a data set: ids of the hub may end in a version, as org/rows-v1.5 does."""
    suffix = Path(text).suffix[1:]
    return Path(text).is_file() or (suffix.isalpha() and not Path(text).is_dir())
