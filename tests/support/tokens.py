"""Random token rows and windows, the same for each seed."""

import numpy as np

from shortviz.records.text import TextInfo, TokenSet, WindowSet
from tests.support.families import tiny_tokens

LENGTHS = (9, 14, 2, 11, 14)


def token_set(lengths=LENGTHS, seed: int = 3) -> TokenSet:
    draw = np.random.default_rng(seed)
    rows = tuple(draw.integers(0, 256, length).astype(np.int64) for length in lengths)
    info = TextInfo(source="random", rows=len(rows), tokens=sum(lengths), fingerprint=f"{seed}-{lengths}")
    return TokenSet(rows=rows, info=info)


def window_set(count: int = 4, length: int = 24, seed: int = 1) -> WindowSet:
    tokens = tiny_tokens(length, count, seed).numpy()
    info = TextInfo(source="random", rows=count, tokens=tokens.size, fingerprint=f"{seed}-{count}-{length}")
    return WindowSet(tokens=tokens, info=info)
