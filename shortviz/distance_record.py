"""From sums over rows to the record of distances: shared by the pass in memory and the streamed one."""

from collections.abc import Mapping, Sequence

from shortviz.criteria import Criterion
from shortviz.gram import NORMS
from shortviz.records import BlockDistances, BoundaryNorms, ModelInfo, RowsNeeded, TokenSet
from shortviz.row_scores import RowScores
from shortviz.settling import count_rows_needed
from shortviz.sums import Sums
from shortviz.token_sample import TokenSample

_FIRST, _REST = NORMS


def empty_sums(criteria: Sequence[Criterion], num_boundaries: int) -> dict[str, Sums]:
    """Return the sums of no row, of all criteria that are summed and of both norms."""
    pairs = num_boundaries * (num_boundaries - 1) // 2
    sums = {c.name: Sums.zeros(pairs) for c in criteria if not c.from_sample}
    return sums | {name: Sums.zeros(num_boundaries) for name in (_FIRST, _REST)}


def rows_needed_of(info: ModelInfo, rows: RowScores) -> dict[str, RowsNeeded]:
    """Return how many rows each choice needs, for the criteria that score row by row."""
    illegal = [(start, n) for start, n, _ in info.illegal]
    scores = {name: rows.of(name) for name in rows.criteria}
    found = {n: count_rows_needed(s, info.num_layers, illegal) for n, s in scores.items() if s is not None}
    return {name: one for name, one in found.items() if one is not None}


def distances_record(
    info: ModelInfo,
    tokens: TokenSet,
    criteria: Sequence[Criterion],
    sums: Mapping[str, Sums],
    sample: TokenSample | None,
    seconds: float,
) -> BlockDistances:
    """Return the record of the sums; criteria that fit something are filled in from the sample, at the end only."""
    size = info.num_layers
    grids = {}
    for criterion in criteria:
        if criterion.from_sample is None:
            found = sums[criterion.name]
        else:
            values = criterion.from_sample(*sample.tensors()) if sample is not None else None
            found = Sums.zeros(size * (size + 1) // 2)
            found = found if values is None else found.add(values.numpy())
        grids[criterion.name] = found.grid(size)
    norms = BoundaryNorms(first=sums[_FIRST].mean, rest=sums[_REST].mean)
    return BlockDistances(
        num_layers=size, criteria=grids, norms=norms, text=tokens.info, seconds=seconds, rows=sums[_FIRST].count
    )
