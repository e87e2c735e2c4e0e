"""The text of a training: rows packed into windows, their order, and what is held out. No torch."""

from dataclasses import replace

import numpy as np

from shortviz.errors import TextError
from shortviz.records.text import Tokens, TokenSet, WindowSet
from shortviz.text.tokens import cut_windows, fingerprint

PARAMETERS_PER_TOKEN = 250
"""Trained parameters that one token of text may stand behind. The demo's quick recipe has about 100, with gain."""
HELD_OUT_WINDOWS = 8
"""At the end of the text, to choose the best step on."""


def pack(tokens: TokenSet, length: int) -> Tokens:
    """Return windows of exactly `length` tokens, (windows, length), opened as the rows are; what is left is left out.

    The rows are joined by what stands between two texts, without their openings, as evaluation windows are made.

    Raises TextError where the text does not fill one window.
    """
    bodies = _bodies(tokens)
    between = np.asarray(tokens.between, dtype=np.int64)
    nothing = between[:0]
    before = [nothing if i in tokens.continued or i == 0 else between for i in range(len(bodies))]
    joined = np.concatenate([part for both in zip(before, bodies, strict=True) for part in both])
    room = length - len(tokens.opening)
    if room < 1 or len(joined) < room:
        most = len(joined) + len(tokens.opening)
        raise TextError(
            f"The {tokens.info.source} has {len(joined)} tokens, fewer than one training window of {length} needs "
            f"({max(room, 1)}); give more text, or choose a length of {len(tokens.opening) + 1} to {most}."
        )
    return cut_windows(joined, tokens.opening, length)


def _bodies(tokens: TokenSet) -> list[Tokens]:
    """Return the rows without their openings."""
    return [row[len(tokens.opening) :] for row in tokens.rows]


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

    At most a fifth of the text is held out, so that fewer windows may come back. The windows open as the rows do. Of a
    text that is one long row, or a few, the end of a row is held out.

    Raises TextError where that fifth does not hold one window.
    """
    bodies, room = _bodies(tokens), window - len(tokens.opening)
    total = sum(map(len, bodies))
    wanted = min(windows * room, total // 5)
    if room < 1 or wanted < room:
        raise TextError(
            f"The {tokens.info.source} has {total:,} tokens; a fifth of it does not fill one held-out window of "
            f"{window}: give at least {5 * max(room, 1):,} tokens, or choose a smaller window."
        )
    held, cut = 0, len(bodies)
    while cut > 1 and held < wanted:
        cut -= 1
        held += len(bodies[cut])
    if room <= held <= total // 2:
        return part_of(tokens, tokens.rows[:cut]), _windows(tokens, tokens.rows[cut:], windows, window, cut)
    at, cut = total - wanted // room * room, 0  # within a row, then
    while len(bodies[cut]) <= at:
        at -= len(bodies[cut])
        cut += 1
    row, opening = tokens.rows[cut], len(tokens.opening)
    rest = (*tokens.rows[:cut], row[: opening + at]) if at and opening + at > 1 else tokens.rows[:cut]
    end = np.concatenate([row[:opening], row[opening + at :]])
    return part_of(tokens, rest), _windows(tokens, (end, *tokens.rows[cut + 1 :]), windows, window, cut)


def part_of(tokens: TokenSet, rows: tuple[Tokens, ...], first: int = 0) -> TokenSet:
    """Return rows of a text, from the `first` on, as a text of their own."""
    size = sum(len(row) for row in rows)
    info = replace(tokens.info, rows=len(rows), tokens=size, fingerprint=fingerprint(rows), skipped=0)
    return replace(tokens, rows=rows, info=info, continued=frozenset(i - first for i in tokens.continued))


def _windows(tokens: TokenSet, rows: tuple[Tokens, ...], windows: int, window: int, first: int) -> WindowSet:
    packed = pack(part_of(tokens, rows, first), window)[:windows]
    part = part_of(tokens, tuple(packed)).info
    info = replace(part, source=f"{part.source}, its end held out", max_length=window, options="")
    return WindowSet(tokens=np.ascontiguousarray(packed), info=info)
