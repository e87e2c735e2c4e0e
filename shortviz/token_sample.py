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

    per_row: int
    """Tokens taken from each row, evenly spaced over its positions 1 .. (0 is the attention sink)."""
    path: Path | None = None
    """Raw file that holds the states as they come."""
    states: list[Tensor] = field(default_factory=list)
    """One tensor (tokens, L+1, hidden) per row."""

    @classmethod
    def of_rows(cls, rows: int, num_boundaries: int, hidden: int, checkpoint: Path | None) -> "TokenSample":
        """Return an empty sample, sized for a text of so many rows and a model of that width."""
        tokens = max(min(SAMPLE_TOKENS, SAMPLE_BYTES // (4 * num_boundaries * hidden)), 1)
        path = None if checkpoint is None else checkpoint.with_suffix(".sample")
        return cls(per_row=-(-tokens // rows), path=path)

    def positions(self, length: int) -> list[int]:
        """Return the positions taken from a row of `length` tokens."""
        count = min(self.per_row, length - 1)
        return [1 + (2 * i + 1) * (length - 1) // (2 * count) for i in range(count)]

    def add(self, states: States, lengths: Sequence[int], tokens: int) -> None:
        """Take the sample's share of a batch of `tokens` columns."""
        for b, length in enumerate(lengths):
            rows = torch.tensor([b * tokens + t for t in self.positions(length)])
            self.states.append(states.of_tokens(rows).float().cpu())
        if self.path is not None:
            append(self.path, torch.cat(self.states[-len(lengths) :]).numpy().tobytes())

    def restore(self, lengths: Sequence[int], num_boundaries: int, hidden: int) -> bool:
        """Read back the rows of these lengths, and drop what was written after them; False where they are not there."""
        counts = [len(self.positions(length)) for length in lengths]
        wanted = sum(counts) * num_boundaries * hidden
        if self.path is None or not self.path.exists() or self.path.stat().st_size < 4 * wanted:
            return False
        found = np.fromfile(self.path, dtype=np.float32, count=wanted).reshape(-1, num_boundaries, hidden)
        with self.path.open("r+b") as file:
            file.truncate(4 * wanted)
        self.states = list(torch.from_numpy(found).split(counts))
        return True

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return the states (tokens, L+1, hidden) and the row that each token came from."""
        rows = [torch.full((len(s),), row) for row, s in enumerate(self.states)]
        return torch.cat(self.states), torch.cat(rows)

    def discard(self) -> None:
        """Remove the file: it belongs to another measurement."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
