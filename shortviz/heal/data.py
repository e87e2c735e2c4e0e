"""The text of a training: rows packed into windows, their order, and what is held out. No torch."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shortviz.errors import TextError
from shortviz.records.text import Tokens, TokenSet, WindowSet
from shortviz.text.tokens import fingerprint

PARAMETERS_PER_TOKEN = 250
"""Trained parameters that one token of text may stand behind. The demo's quick recipe has about 100, with gain."""
HELD_OUT_WINDOWS = 8
"""At the end of the text, to choose the best step on."""


def pack(tokens: TokenSet, length: int, separator: Sequence[int]) -> Tokens:
    """Return windows of exactly `length` tokens, (windows, length): the rows joined by `separator`, the rest left out.

    Raises TextError where the text does not fill one window.
    """
    between = np.asarray(separator, dtype=np.int64)
    parts = [part for row in tokens.rows for part in (row, between)]
    joined = np.concatenate(parts[:-1])
    count = len(joined) // length
    if count < 1:
        raise TextError(
            f"The {tokens.info.source} has {len(joined)} tokens, fewer than one training window of {length}; give more "
            f"text, or choose a length of at most {len(joined)}."
        )
    return joined[: count * length].reshape(count, length)


def refuse_too_little(tokens: TokenSet, windows: Tokens, trained: int) -> None:
    """Raise TextError where there is too little text for the number of trained parameters."""
    needed = -(-trained // PARAMETERS_PER_TOKEN)
    if windows.size < needed:
        raise TextError(
            f"The {tokens.info.source} has {windows.size:,} tokens to train {trained:,} parameters on; that many "
            f"need at least {needed:,} tokens: give more text, or train fewer (a lower rank, fewer targets or layers)."
        )


def batch_of(windows: Tokens, position: int, size: int, seed: int) -> Tokens:
    """Return the `size` windows that follow the first `position` ones in the order of a seed, (size, length).

    Every window comes once in each pass over the text, and each pass has its own order.
    """
    count = len(windows)
    chosen: list[int] = []
    while len(chosen) < size:
        epoch, at = divmod(position + len(chosen), count)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        chosen.extend(int(i) for i in order[at : at + size - len(chosen)])
    return windows[chosen]


def split_heldout(
    tokens: TokenSet, *, windows: int = HELD_OUT_WINDOWS, window: int = 512
) -> tuple[TokenSet, WindowSet]:
    """Return (text to train on, windows of text held out): the last rows, as many as fill the windows.

    At most a fifth of the text is held out, so that fewer windows may come back.

    Raises TextError where that fifth does not hold one window.
    """
    total = sum(len(row) for row in tokens.rows)
    wanted = min(windows * window, total // 5)
    held, cut = 0, len(tokens.rows)
    while cut > 1 and held < wanted:
        cut -= 1
        held += len(tokens.rows[cut])
    count = min(windows, held // window)
    if count < 1 or held > total // 2:
        return _split_tokens(tokens, windows, window, total)
    rest = part_of(tokens, tokens.rows[:cut])
    packed = pack(part_of(tokens, tokens.rows[cut:]), window, ())[:count]
    return rest, _windows(tokens, packed)


def _split_tokens(tokens: TokenSet, windows: int, window: int, total: int) -> tuple[TokenSet, WindowSet]:
    """Hold out the end of a text that is one long row, or a few."""
    joined = np.concatenate(tokens.rows)
    count = min(windows, total // 5 // window)
    if count < 1:
        raise TextError(
            f"The {tokens.info.source} has {total:,} tokens; a fifth of it does not fill one held-out window of "
            f"{window}: give at least {5 * window:,} tokens, or choose a smaller window."
        )
    cut = total - count * window
    return part_of(tokens, (joined[:cut],)), _windows(tokens, joined[cut:].reshape(count, window))


def part_of(tokens: TokenSet, rows: tuple[Tokens, ...]) -> TokenSet:
    """Return some rows of a text as a text of their own."""
    size = sum(len(row) for row in rows)
    info = replace(tokens.info, rows=len(rows), tokens=size, fingerprint=fingerprint(rows), skipped=0)
    return TokenSet(rows=rows, info=info)


def _windows(tokens: TokenSet, packed: Tokens) -> WindowSet:
    part = part_of(tokens, tuple(packed)).info
    info = replace(part, source=f"{part.source}, its end held out", max_length=packed.shape[1], options="")
    return WindowSet(tokens=np.ascontiguousarray(packed), info=info)
