"""Scoring multiple-choice questions with several cuts of one model, one after another."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from shortviz.errors import Stopped
from shortviz.handle import ModelHandle
from shortviz.pruning import prune
from shortviz.records import OnProgress, Progress, PrunePlan, TaskRows, TaskScore
from shortviz.tasks import score_tasks


def score_plans(
    handle: ModelHandle,
    rows: TaskRows,
    plans: Sequence[tuple[int, ...]],
    *,
    on_score: Callable[[TaskScore], None] | None = None,
    on_progress: OnProgress | None = None,
    stop: threading.Event | None = None,
) -> tuple[TaskScore, ...]:
    """Return the accuracy of each cut (the layers removed; none for the uncut model), as far as it got before `stop`.

    `on_score` is called after each cut whose questions were all answered. A cut that was stopped half-way is left out.
    Raises what `prune` and `score_tasks` raise; Stopped before the first cut is done.
    """
    found: list[TaskScore] = []
    total = len(plans) * len(rows.rows)
    for number, removed in enumerate(plans):

        def shown(progress: Progress, number: int = number) -> None:
            if on_progress is not None:
                done = number * len(rows.rows) + progress.done
                detail = f"model {number + 1} of {len(plans)}"
                on_progress(replace(progress, done=done, total=total, detail=detail, snapshot=lambda: tuple(found)))

        if stop is not None and stop.is_set():
            break
        cut = prune(handle, PrunePlan(num_layers=handle.info.num_layers, removed=removed)) if removed else handle
        try:
            score = score_tasks(cut, rows, on_progress=shown, stop=stop)
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
