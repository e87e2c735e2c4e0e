"""Several runs side by side: what they have in common, one scale for all, one block in each. No streamlit, no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shortviz.criteria.base import MEASURED
from shortviz.figures.cells import raw_range
from shortviz.figures.losses import as_map
from shortviz.records.measured import BlockDistances
from shortviz.records.plan import Block
from shortviz.records.run import Run


def maps(run: Run) -> BlockDistances | None:
    """Return everything that can be drawn as a map, distances and measured losses, as criteria of one record."""
    measured = as_map(run.losses, run.distances.norms if run.distances is not None else None) if run.losses else None
    if run.distances is None or measured is None:
        return run.distances or measured
    both = {**run.distances.criteria, **measured.criteria}
    return BlockDistances(
        num_layers=run.model.num_layers,
        criteria=both,
        norms=run.distances.norms,
        text=run.text,
        rows=run.distances.rows,
    )


def in_common(found: Sequence[BlockDistances]) -> list[str]:
    """Return the criteria that all of these have, in the order of the first."""
    return [name for name in found[0].criteria if all(name in one.criteria for one in found)] if found else []


def shared_limits(found: Sequence[BlockDistances], criterion: str) -> tuple[float, float]:
    """Return the ends of one raw scale for all these maps."""
    ends = [raw_range(one.criteria[criterion], criterion) for one in found]
    return min(low for low, _ in ends), max(high for _, high in ends)


@dataclass(frozen=True, kw_only=True, slots=True)
class InRun:
    """One block in one run."""

    name: str
    value: float
    stderr: float
    rank: int
    blocks: int
    """Blocks of its size in that model."""
    best: int
    """Start of the lowest block of its size."""


def block_in(found: Mapping[str, BlockDistances], criterion: str, block: Block) -> list[InRun]:
    """Return the block's number in every run whose model is deep enough for it and has it measured."""
    rows = []
    for name, one in found.items():
        grid = one.criteria[criterion]
        if block.start + block.n > grid.num_layers:
            continue
        value, stderr = grid.at(block)
        row = grid.row(block.n)
        if value != value:
            continue
        known = [(float(v), start) for start, v in enumerate(row) if v == v]
        rows.append(
            InRun(name=name, value=value, stderr=stderr, rank=grid.rank(block), blocks=len(known), best=min(known)[1])
        )
    return rows


def is_measured(criterion: str) -> bool:
    """Return whether this is a measured quantity and not a prediction."""
    return criterion in MEASURED
