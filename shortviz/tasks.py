"""Task accuracy: which choice of a multiple-choice question a model finds most likely, scored as lm_eval does."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from shortviz.errors import Stopped
from shortviz.handle import ModelHandle
from shortviz.progress import NO_WATCH, Watch
from shortviz.records import TaskPrediction, TaskRow, TaskRows, TaskScore
from shortviz.task_forward import open_scorer
from shortviz.task_records import MOST_PAIRED
from shortviz.task_rows import read_task
from shortviz.task_tokens import QuestionTokens, task_tokens

__all__ = ["read_task", "score_tasks"]

SORTED_BATCHES = 16
"""Questions are sorted by length within about this many batches, so that a stopped run has the first questions."""
LIKE_LENGTH = 0.75
"""The shortest question of a batch has at least this share of the longest one's tokens.

With the demo model's tokenizer this order takes 18,000 tokens for 256 ARC questions (35,000 without shared prefixes;
19,500 when sorted by prefix), 18,000 (20,000; 35,000) for PIQA, 35,000 (52,000; 39,000) for HellaSwag.
"""


def score_tasks(handle: ModelHandle, rows: TaskRows, *, batch_size: int = 16, watch: Watch = NO_WATCH) -> TaskScore:
    """Return how many questions the model gets right, by log-likelihood and by log-likelihood per character.

    A choice's log-likelihood (nats) is the sum over its tokens after context and delimiter, tokenised as lm_eval does.
    `batch_size` choices are run at once, whole questions together (one question with more choices is not split). Where
    the model's cache allows it, what a question's choices have in common is run once. Partial results come by
    `Progress.snapshot`; a stop after at least one batch returns what there is, with `complete` False.

    Raises TextError where a question does not fit the model, NumericsError for NaN or Inf (the layer is named),
    Stopped before the first batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    started = time.perf_counter()
    questions = task_tokens(handle, rows)
    found: list[TaskPrediction] = []
    shares = False

    def partial() -> TaskScore:
        return _score(handle, rows, questions, found, shares, time.perf_counter() - started)

    if not watch.stopped:
        scorer = open_scorer(handle, questions)
        shares = scorer.shares
        for batch in _batches(questions, batch_size):
            if watch.stopped:
                break
            scores = scorer.log_likelihoods(batch)
            found += [_prediction(q.index, rows.rows[q.index], lls) for q, lls in zip(batch, scores, strict=True)]
            watch.tell("tasks", done=len(found), total=len(questions), unit="questions", snapshot=partial)
    if not found:
        raise Stopped("Stopped before the first questions were scored; there is no result yet.")
    return partial()


def whole_score(handle: ModelHandle, questions: TaskRows, *, watch: Watch) -> TaskScore | None:
    """Return the accuracy where every question was answered; None after a stop, which then loses nothing else."""
    try:
        found = score_tasks(handle, questions, watch=watch)
    except Stopped:
        return None
    return found if found.complete else None


def _batches(questions: Sequence[QuestionTokens], size: int) -> Iterator[list[QuestionTokens]]:
    """Yield all questions in batches of at most `size` choices, questions of like length together."""
    for part in _filled(questions, size * SORTED_BATCHES):
        yield from _filled(sorted(part, key=lambda question: question.longest, reverse=True), size, LIKE_LENGTH)


def _filled(questions: Sequence[QuestionTokens], size: int, like: float = 0) -> Iterator[list[QuestionTokens]]:
    """Yield consecutive questions with at most `size` choices together, but at least one question.

    A batch also ends before a question that has less than the share `like` of the first one's tokens.
    """
    batch: list[QuestionTokens] = []
    for question in questions:
        full = sum(len(q.choices) for q in batch) + len(question.choices) > size
        if batch and (full or question.longest < like * batch[0].longest):
            yield batch
            batch = []
        batch.append(question)
    if batch:
        yield batch


def _prediction(index: int, row: TaskRow, log_likelihoods: tuple[float, ...]) -> TaskPrediction:
    """Return which choice wins, plainly and by characters (lm_eval 0.4.13, `ConfigurableTask.process_results`)."""
    found = np.array(log_likelihoods)
    characters = np.array([len(choice) for choice in row.choices], dtype=np.float64)
    return TaskPrediction(
        question=index,
        label=row.label,
        chosen=int(found.argmax()),
        chosen_norm=int((found / characters).argmax()),
        log_likelihoods=log_likelihoods,
    )


def _score(
    handle: ModelHandle,
    task: TaskRows,
    questions: Sequence[QuestionTokens],
    found: Sequence[TaskPrediction],
    shares: bool,
    seconds: float,
) -> TaskScore:
    accuracy, stderr = share_and_stderr([p.chosen == p.label for p in found])
    accuracy_norm, stderr_norm = share_and_stderr([p.chosen_norm == p.label for p in found])
    ordered = tuple(sorted(found, key=lambda p: p.question))
    return TaskScore(
        accuracy=accuracy,
        accuracy_stderr=stderr,
        accuracy_norm=accuracy_norm,
        accuracy_norm_stderr=stderr_norm,
        questions=len(found),
        chance=math.fsum(1 / len(p.log_likelihoods) for p in found) / len(found),
        majority=max(Counter(p.label for p in found).values()) / len(found),
        source=task.source,
        fingerprint=task.fingerprint,
        removed=() if handle.plan is None else handle.plan.removed,
        truncated=sum(questions[p.question].truncated for p in found),
        shared_prefixes=shares,
        predictions=ordered,
        right="".join("01"[p.chosen == p.label] for p in ordered) if len(ordered) <= MOST_PAIRED else "",
        complete=len(found) == len(questions),
        seconds=seconds,
    )


def share_and_stderr(right: Sequence[bool]) -> tuple[float, float]:
    """Return the share of True and its binomial standard error sqrt(p (1 - p) / (n - 1)), which is NaN for n = 1."""
    share = sum(right) / len(right)
    error = math.sqrt(share * (1 - share) / (len(right) - 1)) if len(right) > 1 else math.nan
    return share, error
