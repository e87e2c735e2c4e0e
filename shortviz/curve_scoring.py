"""Scoring multiple-choice questions with several cuts of one model, one after another."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from shortviz.errors import Stopped
from shortviz.handle import ModelHandle
from shortviz.progress import NO_WATCH, Progress, Watch
from shortviz.pruning import prune
from shortviz.records import PrunePlan, TaskRows, TaskScore
from shortviz.tasks import score_tasks


def score_plans(
    handle: ModelHandle,
    rows: TaskRows,
    plans: Sequence[tuple[int, ...]],
    *,
    on_score: Callable[[TaskScore], None] | None = None,
    watch: Watch = NO_WATCH,
) -> tuple[TaskScore, ...]:
    """Return the accuracy of each cut (the layers removed; none for the uncut model), as far as it got before a stop.

    `on_score` is called after each cut whose questions were all answered. A cut that was stopped half-way is left out.
    Raises what `prune` and `score_tasks` raise; Stopped before the first cut is done.
    """
    found: list[TaskScore] = []
    total = len(plans) * len(rows.rows)
    for number, removed in enumerate(plans):

        def of_all(progress: Progress, number: int = number) -> Progress:
            done = number * len(rows.rows) + progress.done
            detail = f"model {number + 1} of {len(plans)}"
            return replace(progress, done=done, total=total, detail=detail, snapshot=lambda: tuple(found))

        if watch.stopped:
            break
        cut = prune(handle, PrunePlan(num_layers=handle.info.num_layers, removed=removed)) if removed else handle
        try:
            score = score_tasks(cut, rows, watch=watch.mapped(of_all))
        except Stopped:
            break
        if not score.complete:
            break
        found.append(score)
        if on_score is not None:
            on_score(score)
    if not found:
        raise Stopped("Stopped before the first model had answered every question; there is no result yet.")
    return tuple(found)
