"""A fixed sample of tokens with their states at every boundary, for criteria that fit something.

Taken in the same forward pass as everything else; kept in a raw file beside the checkpoint, so that a killed
measurement goes on with the same sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shortviz.atomic import append
from shortviz.gram import States

SAMPLE_TOKENS = 768
"""Tokens in a sample where memory allows; two thirds are fitted on, one third is scored."""
SAMPLE_BYTES = 2**30
"""A sample is made smaller than that where the model is large."""


@dataclass(kw_only=True, slots=True)
class TokenSample:
    """States of sampled tokens, (L+1, hidden) each in float32, and the row each came from."""

    counts: tuple[int, ...]
    """Tokens taken from each row that is measured here, evenly spaced over its positions 1 .. (0 is the sink)."""
    num_boundaries: int
    hidden: int
    path: Path | None = None
    """Raw file that holds the states as they come."""
    states: list[Tensor] = field(default_factory=list)
    """One tensor (tokens, L+1, hidden) per row, as far as rows were measured."""

    @classmethod
    def of_rows(
        cls, rows: int, num_boundaries: int, hidden: int, checkpoint: Path | None, mine: Sequence[int] | None = None
    ) -> "TokenSample":
        """Return an empty sample, sized for a text of so many rows and a model of that width.

        The tokens are spread evenly over the rows; of a text of more rows than tokens, most give none. `mine` are the
        places among all rows of those that this process measures, in order; by default all of them.
        """
        tokens = max(min(SAMPLE_TOKENS, SAMPLE_BYTES // (4 * num_boundaries * hidden)), 1)
        path = None if checkpoint is None else checkpoint.with_suffix(".sample")
        places = range(rows) if mine is None else mine
        counts = tuple((place + 1) * tokens // rows - place * tokens // rows for place in places)
        return cls(counts=counts, num_boundaries=num_boundaries, hidden=hidden, path=path)

    def positions(self, row: int, length: int) -> list[int]:
        """Return the positions taken from the row, of `length` tokens, that is measured here as number `row`."""
        count = min(self.counts[row], length - 1)
        return [1 + (2 * i + 1) * (length - 1) // (2 * count) for i in range(count)]

    def add(self, states: States, lengths: Sequence[int], tokens: int) -> None:
        """Take the sample's share of a batch of `tokens` columns."""
        for b, length in enumerate(lengths):
            rows = torch.tensor([b * tokens + t for t in self.positions(len(self.states), length)])
            taken = states.of_tokens(rows).float().cpu() if len(rows) else torch.empty(0, *self._shape)
            self.states.append(taken)
        if self.path is not None:
            append(self.path, torch.cat(self.states[-len(lengths) :]).numpy().tobytes())

    def restore(self, lengths: Sequence[int]) -> bool:
        """Read back the rows of these lengths, and drop what was written after them; False where they are not there."""
        counts = [len(self.positions(row, length)) for row, length in enumerate(lengths)]
        wanted = sum(counts) * self.num_boundaries * self.hidden
        if self.path is None or not self.path.exists() or self.path.stat().st_size < 4 * wanted:
            return False
        found = np.fromfile(self.path, dtype=np.float32, count=wanted).reshape(-1, *self._shape)
        with self.path.open("r+b") as file:
            file.truncate(4 * wanted)
        self.states = list(torch.from_numpy(found).split(counts))
        return True

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return the states (tokens, L+1, hidden) and the row that each token came from, numbered among those rows."""
        taken = [states for states in self.states if len(states)]
        rows = [torch.full((len(states),), row) for row, states in enumerate(taken)]
        return torch.cat(taken), torch.cat(rows)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.num_boundaries, self.hidden

    def discard(self) -> None:
        """Remove the file: it belongs to another measurement."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
