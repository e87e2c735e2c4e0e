"""Rows of random tokens for measurements that stream."""

from collections.abc import Sequence

import numpy as np

from shortviz.records.text import TextInfo, TokenSet

LENGTHS = (9, 14, 2, 11, 34)


def rows(lengths: Sequence[int] = LENGTHS) -> TokenSet:
    draw = np.random.default_rng(3)
    found = tuple(draw.integers(0, 256, length).astype(np.int64) for length in lengths)
    return TokenSet(rows=found, info=TextInfo(source="random", rows=len(found), tokens=sum(lengths), fingerprint="s"))
