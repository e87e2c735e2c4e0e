"""Token rows of different lengths on their way through a model: checked, in batches of like length, padded right."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from shortviz.errors import TextError
from shortviz.model.placement import send
from shortviz.records.model import ModelInfo
from shortviz.records.text import Tokens, TokenSet


def check_rows(info: ModelInfo, tokens: TokenSet) -> None:
    """Raise TextError where a row is too long for the model or holds tokens that it does not have."""
    longest, highest = max(map(len, tokens.rows)), max(int(row.max()) for row in tokens.rows)
    check_fits(info, longest, highest, "row", "row length")


def check_fits(info: ModelInfo, longest: int, highest: int, noun: str, choice: str) -> None:
    """Raise TextError where the longest row, or the highest token, is beyond what the model has."""
    context, vocabulary = info.context_length, info.vocab_size
    if context is not None and longest > context:
        raise TextError(
            f"A {noun} of {longest} tokens is longer than the model's context of {context}; choose a {choice} of at "
            f"most {context}."
        )
    if highest >= vocabulary:
        raise TextError(
            f"The {noun}s hold token {highest}, but the model's vocabulary has {vocabulary}; make them with this "
            "model's tokenizer."
        )


def batches_by_length(rows: Sequence[Tokens], batch_size: int) -> list[list[Tokens]]:
    """Return the rows by length, longest first: little padding, and memory peaks at the start, not at the end."""
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    return [[rows[i] for i in order[low : low + batch_size]] for low in range(0, len(order), batch_size)]


def places_of(batches: Sequence[Sequence[Tokens]], chosen: Sequence[int]) -> list[int]:
    """Return the places, among the rows of all batches, of the rows of the chosen ones."""
    ends = list(accumulate(map(len, batches)))
    return [place for index in chosen for place in range(ends[index] - len(batches[index]), ends[index])]


def padded_right(rows: Sequence[Tokens]) -> Tensor:
    """Return the rows as one array of ids, (rows, longest), padded right with 0.

    Right padding and no mask: a causal model's real tokens never see what comes after them, and without a mask
    attention takes its fast path. (The contract suite checks this for every family.)
    """
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
    return ids


def sent_ahead(batches: Sequence[Sequence[Tokens]], device: torch.device) -> Iterator[Tensor]:
    """Yield the ids of each batch on the device; to a GPU the next ones are on their way meanwhile."""
    coming: Tensor | None = None
    for index, rows in enumerate(batches):
        ids = _sent(rows, device) if coming is None else coming
        coming = _sent(batches[index + 1], device) if device.type == "cuda" and index + 1 < len(batches) else None
        yield ids


@torch.inference_mode()
def _sent(rows: Sequence[Tokens], device: torch.device) -> Tensor:
    return send(padded_right(rows), device)
