"""The text that a repair is fitted to: rows of equal length from the beginning of a text. No torch."""

from typing import TYPE_CHECKING, Final

from shortviz.records import TextSpec, TokenSet, WindowSpec
from shortviz.texts import make_windows, opening_tokens, packed_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIT_TOKENS: Final = 16_384
"""Tokens to fit on where the text has as many: enough for the ridge, and done within a minute."""
FIT_LENGTH: Final = 256
"""Tokens in a row of them, where nobody says otherwise."""


def fit_rows(
    spec: TextSpec,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tokens: int = FIT_TOKENS,
    length: int = FIT_LENGTH,
    before: TokenSet | None = None,
) -> TokenSet:
    """Return the first tokens of a text as rows, the text joined so that none of it is lost.

    `before` is the part of the same text that a training sees: no row then reaches into what follows it, which that
    training holds out. The rows are those of `shortviz repair` with as many --fit-tokens.
    """
    count = max(tokens // length, 1)
    if before is not None:
        opening = len(opening_tokens(spec.bos, tokenizer))
        seen = sum(len(row) - opening for row in before.rows)  # joined and not truncated there are only more of them
        count = max(min(count, seen // length), 1)
    return packed_rows(make_windows(spec, WindowSpec(window=length, windows=count), tokenizer))
