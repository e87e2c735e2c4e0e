"""Adding up what several processes measured: sums in float64, samples and rows back in the order of the batches."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from torch import Tensor

from shortviz.ranks import Ranks
from shortviz.records import Floats
from shortviz.row_scores import RowScores
from shortviz.sums import Sums
from shortviz.token_sample import TokenSample

One = TypeVar("One", Tensor, Floats)
Found = tuple[dict[str, Sums], TokenSample | None, RowScores]


def added_up(
    ranks: Ranks, sums: Mapping[str, Sums], sample: TokenSample | None, rows: RowScores, batch_rows: Sequence[int]
) -> Found:
    """Return the sums of all processes, and, on rank 0, all their sampled tokens and rows as one process would have.

    `batch_rows` is the number of rows of each batch of the whole text; process r did every size-th from the r-th on.
    """
    total = dict(sums)
    for number, others in enumerate(ranks.all(dict(sums))):
        total = others if number == 0 else {name: one.merge(others[name]) for name, one in total.items()}
    states = ranks.to_writer(None if sample is None else sample.states)
    scores = ranks.to_writer((rows.whole, rows.batches))
    if states is None or scores is None:  # not the writer: nobody reads its record
        return total, None, replace(rows, batches=[], path=None)
    merged = None
    if sample is not None:
        merged = replace(sample, path=None, states=_in_order([list(s or ()) for s in states], batch_rows, ranks.size))
    lines = [[line for batch in batches for line in batch] for _, batches in scores]
    ordered = _in_order(lines, batch_rows, ranks.size)[: rows.limit]
    return (
        total,
        merged,
        replace(
            rows,
            path=None,
            whole=all(whole for whole, _ in scores),
            batches=[np.stack(ordered)] if ordered else [],
        ),
    )


def _in_order(by_rank: Sequence[list[One]], batch_rows: Sequence[int], size: int) -> list[One]:
    """Return one entry per row in the order of the batches, as far as each process came."""
    places = [0] * size
    found: list[One] = []
    for batch, count in enumerate(batch_rows):
        rank = batch % size
        found += by_rank[rank][places[rank] : places[rank] + count]
        places[rank] += count
    return found
