"""`shortviz evaluate --tasks`: multiple-choice accuracy of the model and of the cut one."""

from typing import TYPE_CHECKING, Any

from shortviz.progress import Watch
from shortviz.record_json import plain
from shortviz.records import TaskRows, TaskScore
from shortviz.words import percent

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle

Scores = tuple[TaskScore, TaskScore | None]
"""(of the model evaluated, of the uncut one where layers were removed)."""


def score_both(handle: "ModelHandle", pruned: "ModelHandle | None", questions: TaskRows, watch: Watch) -> Scores:
    """Return the scores of the model evaluated and, where layers were removed, of the uncut one beside it."""
    from shortviz.tasks import score_tasks

    base = score_tasks(handle, questions, watch=watch)
    if pruned is None:
        return base, None
    return score_tasks(pruned, questions, watch=watch), base


def complete(scores: Scores) -> bool:
    """Tell whether every model answered every question; a stopped one has only the first of them."""
    return all(score.complete for score in scores if score is not None)


def scores_json(scores: Scores | None) -> dict[str, Any]:
    """Return what --tasks adds to the JSON object of an evaluation: nothing without it."""
    if scores is None:
        return {}
    score, base = scores
    return {"tasks": plain(score) | {"base": base}}


def scores_text(scores: Scores | None) -> list[str]:
    """Return the lines that --tasks adds to an evaluation in words."""
    if scores is None:
        return []
    score, base = scores
    lines = [_line("accuracy", score)] + ([_line("uncut model", base)] if base is not None else [])
    return [*lines, f"Over {score.behind}."]


def _line(label: str, score: TaskScore) -> str:
    return (
        f"{label:<18}{percent(score.accuracy, score.accuracy_stderr)}   by length "
        f"{percent(score.accuracy_norm, score.accuracy_norm_stderr)}"
    )
