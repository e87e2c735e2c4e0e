"""Multiple-choice questions as token sequences, by lm_eval's conventions (0.4.13, `TemplateLM._encode_pair`).

A choice's tokens are what is left of the tokens of (context + delimiter + choice) behind as many tokens as the context
alone has; spaces that end the context go to the choice. Special tokens are what the tokenizer itself puts in front.
A sequence that is longer than the model's context loses its beginning.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shortviz.errors import TextError
from shortviz.handle import ModelHandle
from shortviz.records import TaskRow, TaskRows


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
    pairs = [_pair(row.context, task.delimiter + choice) for row in task.rows for choice in row.choices]
    contexts = _encode(handle.tokenizer, [context for context, _ in pairs])
    wholes = _encode(handle.tokenizer, [context + choice for context, choice in pairs])
    encoded = iter(zip(contexts, wholes, strict=True))
    return tuple(
        _question(handle, index, row, [next(encoded) for _ in row.choices]) for index, row in enumerate(task.rows)
    )


def _pair(context: str, choice: str) -> tuple[str, str]:
    """Return context and choice with the spaces that end the context moved to the choice."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + choice


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
