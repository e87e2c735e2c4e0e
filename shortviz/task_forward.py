"""Log-likelihoods of choices, many at a time: right-padded rows, and logits of the choices' own tokens only.

Questions of a batch may share prefixes: what every question of the batch has in common with its own choices, cut to the
shortest of them, is run once a question; then each choice continues, with what is left of its question, from a copy of
the key/value cache. Nothing is padded before a token whose logits are used, so neither masks nor positions are touched,
and causality alone makes it equal to running each choice whole, up to the rounding of other matrix shapes.

That holds for a cache of keys and values. Models that keep other state (Mamba, short convolutions, linear attention)
are run whole: their cache is of another kind. Any other reason to differ shows in a trial on the question with the
longest prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from shortviz.architectures import layer_stack
from shortviz.errors import NumericsError
from shortviz.handle import ModelHandle
from shortviz.logits import LogitHead, batch_head_input, open_head
from shortviz.task_tokens import ChoiceTokens, QuestionTokens
from shortviz.window_scores import where_not_finite

TRIAL_MARGIN = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Nats a token by which the two ways may differ in the trial; a wrong cache is off by whole nats."""
TRIAL_MARGIN_16_BIT = 0.25
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
        scores = iter(_score(self.head, questions, prefix if self.shares and worth_it else 0))
        return [tuple(next(scores) for _ in question.choices) for question in questions]


def open_scorer(handle: ModelHandle, questions: Sequence[QuestionTokens]) -> ChoiceScorer:
    """Return how to score these questions; whether prefixes may be shared is tried on the longest."""
    trial = max(questions, key=lambda question: question.prefix)
    head = open_head(handle, torch.tensor(trial.choices[0].tokens))
    return ChoiceScorer(head=head, shares=trial.prefix > 0 and _sharing_is_exact(head, trial))


def _sharing_is_exact(head: LogitHead, trial: QuestionTokens) -> bool:
    if _prefix_cache(head.handle, [trial], trial.prefix) is None:
        return False
    whole, shared = (_score(head, [trial], prefix) for prefix in (0, trial.prefix))
    margin = TRIAL_MARGIN.get(head.handle.model.dtype, TRIAL_MARGIN_16_BIT)
    return all(
        abs(a - b) <= margin * len(choice.targets) for a, b, choice in zip(whole, shared, trial.choices, strict=True)
    )


@torch.inference_mode()
def _score(head: LogitHead, questions: Sequence[QuestionTokens], prefix: int) -> list[float]:
    """Return the log-likelihood of all choices in one batch, the first `prefix` tokens shared within a question."""
    rows = [choice for question in questions for choice in question.choices]
    device = head.handle.model.device
    # Padded with tokens of the row itself: some families warn about pad tokens in their input.
    width = max(len(choice.tokens) for choice in rows) - prefix
    ids = torch.tensor([_padded(choice, prefix, width) for choice in rows])
    with head.handle.lock:
        call: dict[str, Any] = {"use_cache": False}
        if prefix:
            cache = _prefix_cache(head.handle, questions, prefix)
            assert cache is not None, "sharing was tried before"
            owner = [at for at, question in enumerate(questions) for _ in question.choices]
            cache.batch_select_indices(torch.tensor(owner, device=device))
            call = {"use_cache": True, "past_key_values": cache}
        states = _states(head, ids, call)
    row = torch.tensor([at for at, choice in enumerate(rows) for _ in choice.targets], device=device)
    position = torch.tensor([choice.first + i - prefix for choice in rows for i in range(len(choice.targets))])
    target = torch.tensor([token for choice in rows for token in choice.targets])
    found = _log_probabilities(head, states[row, position.to(device)], target)
    if not bool(torch.isfinite(found).all()):
        bad = int(row[int((~torch.isfinite(found)).nonzero()[0])])
        raise NumericsError(where_not_finite(head.handle, torch.tensor(rows[bad].tokens)))
    return [float(part.sum()) for part in found.split([len(choice.targets) for choice in rows])]


def _padded(choice: ChoiceTokens, prefix: int, width: int) -> list[int]:
    rest = list(choice.tokens[prefix:])
    return rest + rest[-1:] * (width - len(rest))


def _states(head: LogitHead, ids: Tensor, call: dict[str, Any]) -> Tensor:
    """Return what the logits are made from, (rows, tokens, hidden), or the logits where the head is not split off."""
    if head.split:
        return batch_head_input(head.handle.model, ids, **call)
    logits: Tensor = head.handle.model(input_ids=ids.to(head.handle.model.device), **call).logits
    return logits


def _log_probabilities(head: LogitHead, states: Tensor, target: Tensor) -> Tensor:
    """Return the log-probability of each target, float64 on the CPU, with the logits of a few tokens at a time."""
    parts = []
    for at in range(0, len(target), head.chunk):
        logits = head.logits(states[at : at + head.chunk])
        wanted = target[at : at + head.chunk, None].to(logits.device)
        parts.append((logits.gather(-1, wanted)[:, 0].double() - logits.logsumexp(-1).double()).cpu())
    return torch.cat(parts)


@torch.inference_mode()
def _prefix_cache(handle: ModelHandle, questions: Sequence[QuestionTokens], prefix: int) -> DynamicCache | None:
    """Return the cache of the questions' first tokens, one row each; None where it is not all keys and values."""
    ids = torch.tensor([question.choices[0].tokens[:prefix] for question in questions])
    with handle.lock:
        out = layer_stack(handle.model).decoder(input_ids=ids.to(handle.model.device), use_cache=True)
    cache = getattr(out, "past_key_values", None)
    # Exact types: child classes hold other state (MiniMax's cache, the layers of hybrid models).
    if not isinstance(cache, DynamicCache) or type(cache) is not DynamicCache:
        return None
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return cache if plain else None
