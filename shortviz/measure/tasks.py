"""Task accuracy: which choice of a multiple-choice question a model finds most likely, scored as lm_eval does."""

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from shortviz.errors import NumericsError, Stopped, TextError
from shortviz.measure.logits import LogitHead, batch_head_input, open_head
from shortviz.measure.losses import where_not_finite
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack
from shortviz.model.prune import prune
from shortviz.progress import NO_WATCH, Progress, Watch
from shortviz.records.formatting import counted
from shortviz.records.plan import PrunePlan
from shortviz.records.text import MOST_PAIRED, TaskPrediction, TaskRow, TaskRows, TaskScore
from shortviz.text.tokens import spellings

# Questions become tokens as in lm_eval (0.4.13, `TemplateLM._encode_pair`): a choice's tokens are what is left of those
# of (context + delimiter + choice) behind as many as the context alone has; spaces that end the context go to the
# choice. Special tokens are what the tokenizer puts in front, and what a question spells (`</s>`): lm_eval encodes with
# the tokenizer's own setting, which parses them. What is too long for the model loses its beginning.


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceTokens:
    """One choice behind its question."""

    tokens: tuple[int, ...]
    """What the model reads: question and choice without the choice's last token, which predicts nothing."""
    targets: tuple[int, ...]
    """The choice's tokens; the logits of the last len(targets) positions predict them."""

    @property
    def first(self) -> int:
        """Position whose logits predict the first of the choice's tokens."""
        return len(self.tokens) - len(self.targets)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionTokens:
    """One question with its choices."""

    index: int
    """Index in `TaskRows.rows`."""
    choices: tuple[ChoiceTokens, ...]
    prefix: int
    """Tokens that all choices begin with and that stand before every position whose logits are needed."""
    truncated: bool
    """Whether the beginning was left out to fit in the model's context."""

    @property
    def longest(self) -> int:
        """Tokens of the longest choice with its question."""
        return max(len(choice.tokens) for choice in self.choices)


def task_tokens(handle: ModelHandle, task: TaskRows) -> tuple[QuestionTokens, ...]:
    """Return the questions as tokens, in order.

    Raises TextError where a question or choice gives no tokens, or a choice alone fills the model's context.
    """
    pairs = [(row.context, row.context + task.delimiter + choice) for row in task.rows for choice in row.choices]
    contexts = _encode(handle.tokenizer, [context.rstrip() for context, _ in pairs])
    wholes = _encode(handle.tokenizer, [whole for _, whole in pairs])
    encoded = iter(zip(contexts, wholes, strict=True))
    return tuple(
        _question(handle, index, row, [next(encoded) for _ in row.choices]) for index, row in enumerate(task.rows)
    )


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each text with the tokenizer's own special tokens, unless the text itself opens with BOS."""
    opening = tokenizer.bos_token or tokenizer.eos_token
    found: list[list[int]] = [[] for _ in texts]
    for special in (True, False):
        chosen = [i for i, text in enumerate(texts) if special != bool(opening and text.startswith(opening))]
        if chosen:
            # `verbose=False` silences the warning about long texts; they are cut below.
            ids = tokenizer([texts[i] for i in chosen], add_special_tokens=special, verbose=False)["input_ids"]
            for i, row in zip(chosen, ids, strict=True):
                found[i] = row
    return found


def _question(
    handle: ModelHandle, index: int, row: TaskRow, encoded: Sequence[tuple[list[int], list[int]]]
) -> QuestionTokens:
    limit = handle.info.context_length
    choices, truncated = [], False
    for number, (context, whole) in enumerate(encoded):
        targets = whole[len(context) :]
        if not context or not targets:
            what = f"Choice {number}" if context else "The question"
            raise TextError(f"{what} of {row.where} gives no tokens with this tokenizer; remove the row.")
        if limit is not None and len(targets) > limit:
            raise TextError(
                f"Choice {number} of {row.where} is {len(targets)} tokens long, more than the model's context of "
                f"{limit}; remove the row."
            )
        tokens = [*context, *targets[:-1]]
        if limit is not None and len(tokens) > limit:
            tokens, truncated = tokens[-limit:], True
        choices.append(ChoiceTokens(tokens=tuple(tokens), targets=tuple(targets)))
    common = len(os.path.commonprefix([choice.tokens for choice in choices]))
    # At least one token stays for the second pass: its logits are needed.
    prefix = min(common, *(choice.first for choice in choices))
    return QuestionTokens(index=index, choices=tuple(choices), prefix=max(prefix, 0), truncated=truncated)


# Choices are scored many at a time in right-padded rows. What every question of a batch has in common with its own
# choices, cut to the shortest of them, is run once a question; then each choice continues from a copy of the key/value
# cache. Nothing is padded before a token whose logits are used, so neither masks nor positions are touched, and
# causality alone makes it equal to running each choice whole, up to the rounding of other matrix shapes.
#
# That holds for a cache of keys and values. Models that keep other state (Mamba, short convolutions, linear attention)
# are run whole. Any other reason to differ shows in a trial on the question with the longest prefix.

TRIAL_MARGIN = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Nats a token by which the two ways may differ in the trial; a wrong cache is off by whole nats."""
TRIAL_MARGIN_16_BIT = 0.25
_PLAIN_LAYERS = {DynamicLayer, DynamicSlidingWindowLayer, DummyLayer}
"""A dummy stands for a layer that keeps nothing: one that reads another's keys and values (Gemma 3n and 4)."""
MIN_SAVED = 64
"""Tokens that a shared prefix must save in a batch: a second pass reads all weights again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChoiceScorer:
    """How the choices of a handle are scored."""

    head: LogitHead
    shares: bool
    """Whether choices may continue from their question's key/value cache."""

    def log_likelihoods(self, questions: Sequence[QuestionTokens]) -> list[tuple[float, ...]]:
        """Return the log-likelihood of each choice of each question, in nats.

        Raises NumericsError for NaN or Inf; the layer is named.
        """
        choices = [choice for question in questions for choice in question.choices]
        prefix = min(question.prefix for question in questions)
        worth_it = prefix * (len(choices) - len(questions)) >= MIN_SAVED
        scores = iter(_choice_scores(self.head, questions, prefix if self.shares and worth_it else 0))
        return [tuple(next(scores) for _ in question.choices) for question in questions]


def open_scorer(handle: ModelHandle, questions: Sequence[QuestionTokens]) -> ChoiceScorer:
    """Return how to score these questions; whether prefixes may be shared is tried on the longest."""
    trial = max(questions, key=lambda question: question.prefix)
    head = open_head(handle, torch.tensor(trial.choices[0].tokens))
    return ChoiceScorer(head=head, shares=trial.prefix > 0 and _sharing_is_exact(head, trial))


def _sharing_is_exact(head: LogitHead, trial: QuestionTokens) -> bool:
    if prefix_cache(head.handle, _prefixes([trial], trial.prefix)) is None:
        return False
    whole, shared = (_choice_scores(head, [trial], prefix) for prefix in (0, trial.prefix))
    margin = TRIAL_MARGIN.get(head.handle.model.dtype, TRIAL_MARGIN_16_BIT)
    return all(
        abs(a - b) <= margin * len(choice.targets) for a, b, choice in zip(whole, shared, trial.choices, strict=True)
    )


@torch.inference_mode()
def _choice_scores(head: LogitHead, questions: Sequence[QuestionTokens], prefix: int) -> list[float]:
    """Return the log-likelihood of all choices in one batch, the first `prefix` tokens shared within a question."""
    rows = [choice for question in questions for choice in question.choices]
    device = head.handle.model.device
    # Padded with tokens of the row itself: some families warn about pad tokens in their input.
    width = max(len(choice.tokens) for choice in rows)
    ids = torch.tensor([(*c.tokens, *c.tokens[-1:] * (width - len(c.tokens)))[prefix:] for c in rows])
    with head.handle.lock:
        call: dict[str, Any] = {"use_cache": False}
        if prefix:
            cache = prefix_cache(head.handle, _prefixes(questions, prefix))
            assert cache is not None, "sharing was tried before"
            owner = [at for at, question in enumerate(questions) for _ in question.choices]
            cache.batch_select_indices(torch.tensor(owner, device=device))
            call = {"use_cache": True, "past_key_values": cache}
        # Without a head of its own the logits themselves stand for what they are made from.
        model = head.handle.model
        states = batch_head_input(model, ids, **call) if head.split else model(input_ids=ids.to(device), **call).logits
    row = torch.tensor([at for at, choice in enumerate(rows) for _ in choice.targets], device=device)
    position = torch.tensor([choice.first + i - prefix for choice in rows for i in range(len(choice.targets))])
    target = torch.tensor([token for choice in rows for token in choice.targets])
    found = _log_probabilities(head, states[row, position.to(device)], target)
    if not bool(torch.isfinite(found).all()):
        bad = int(row[int((~torch.isfinite(found)).nonzero()[0])])
        raise NumericsError(where_not_finite(head.handle, torch.tensor(rows[bad].tokens)))
    return [float(part.sum()) for part in found.split([len(choice.targets) for choice in rows])]


def _log_probabilities(head: LogitHead, states: Tensor, target: Tensor) -> Tensor:
    """Return the log-probability of each target, float64 on the CPU, with the logits of a few tokens at a time."""
    parts = []
    for at in range(0, len(target), head.chunk):
        logits = head.logits(states[at : at + head.chunk])
        wanted = target[at : at + head.chunk, None].to(logits.device)
        parts.append((logits.gather(-1, wanted)[:, 0].double() - logits.logsumexp(-1).double()).cpu())
    return torch.cat(parts)


def _prefixes(questions: Sequence[QuestionTokens], prefix: int) -> Tensor:
    return torch.tensor([question.choices[0].tokens[:prefix] for question in questions])


@torch.inference_mode()
def prefix_cache(handle: ModelHandle, ids: Tensor) -> DynamicCache | None:
    """Return the cache behind rows of tokens, (rows, tokens); None where it is not all keys and values."""
    with handle.lock:
        out = layer_stack(handle.model).decoder(input_ids=ids.to(handle.model.device), use_cache=True)
    cache: Any = getattr(out, "past_key_values", None)
    # Exact types: child classes hold other state (MiniMax's cache, the layers of hybrid models).
    plain = type(cache) is DynamicCache and {type(layer) for layer in cache.layers} <= _PLAIN_LAYERS
    return cache if plain else None


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
    spelled = spellings((text for row in rows.rows for text in (row.context, *row.choices)), handle.tokenizer)
    if spelled:
        told = f"{counted(spelled, 'spelling')} of special tokens parsed as tokens, as lm_eval does"
        rows = replace(rows, source=f"{rows.source}; {told}")
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
        removed=handle.removed,
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
