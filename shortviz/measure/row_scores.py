"""The score of every row of text by every criterion, kept while a measurement runs: what random orders are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shortviz.files import append, read_back
from shortviz.records.json import Floats

ROW_BYTES = 64 * 2**20
"""Memory for it; rows beyond are left out (3,600 rows of the demo model fit, 516 of one with 80 layers)."""


@dataclass(kw_only=True, slots=True)
class RowScores:
    """Scores in float64, one array (rows, pairs) per batch and criterion; beside a checkpoint also in a raw file."""

    criteria: tuple[str, ...]
    pairs: int
    path: Path | None = None
    batches: list[Floats] = field(default_factory=list)
    """Each of shape (rows, criteria, pairs)."""
    whole: bool = True
    """False: rows measured before a kill are missing, so that nothing can be said."""

    @classmethod
    def beside(cls, checkpoint: Path | None, criteria: Sequence[str], pairs: int) -> "RowScores":
        """Return an empty collection whose file, if any, lies beside the checkpoint."""
        path = None if checkpoint is None else checkpoint.with_suffix(".rows")
        return cls(criteria=tuple(criteria), pairs=pairs, path=path)

    @property
    def limit(self) -> int:
        """Rows that fit in the memory set aside."""
        return max(ROW_BYTES // (8 * max(len(self.criteria), 1) * self.pairs), 1)

    @property
    def rows(self) -> int:
        """Rows kept."""
        return sum(len(batch) for batch in self.batches)

    def add(self, scores: Mapping[str, Floats]) -> None:
        """Keep the rows of a batch, as far as there is room. Raises ResourceError where the disk will not take it."""
        room = self.limit - self.rows
        if not self.criteria or not self.whole or room <= 0:
            return
        new = np.stack([scores[name] for name in self.criteria], axis=1)[:room]
        self.batches.append(new)
        if self.path is not None:
            append(self.path, new.tobytes())

    def restore(self, rows: int) -> None:
        """Read back the first `rows` rows and drop what came after them; without them there is no answer."""
        kept = min(rows, self.limit)
        found = read_back(self.path, np.float64, kept * len(self.criteria) * self.pairs)
        self.whole = found is not None or kept == 0
        if found is not None and kept:
            self.batches = [found.reshape(kept, len(self.criteria), self.pairs)]

    def of(self, criterion: str) -> Floats | None:
        """Return the scores (rows, pairs) of a criterion; None where it has none."""
        if not self.whole or criterion not in self.criteria or not self.batches:
            return None
        index = self.criteria.index(criterion)
        return np.concatenate([batch[:, index] for batch in self.batches])
