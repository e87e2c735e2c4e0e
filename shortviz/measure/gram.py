"""From the boundary states of a batch to one number per sequence, criterion and block.

All boundaries of one token give one small Gram matrix G = S S^T, S of shape (L+1, hidden); cosines, norms and
differences of all L(L+1)/2 blocks come from it at once, for far less than one forward pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shortviz.criteria.base import Criterion, Pairs
from shortviz.errors import NumericsError
from shortviz.files import append, read_back
from shortviz.model.placement import send
from shortviz.records.json import Floats

CHUNK_TOKENS = 128
"""Tokens whose pairs are scored at once."""

GPU_CHUNK_BYTES = 2**30
"""Bytes of states in float64 whose pairs a GPU scores at once: fewer, larger steps, or launching them takes longer."""

CACHED_TOKENS = 16
"""Tokens whose states are upcast to float64 at once on a CPU: 2.3 MB for the demo model, which its cache holds."""


NORMS = ("norm.first", "norm.rest")
"""Names of the norms among the scores: at position 0, and the mean over the other positions."""


ZEROS = "zeros"
"""Name of the weights of zero vectors among the scores, where a criterion is undefined for them."""


class States(Protocol):
    """The states of one batch at every boundary, wherever they are kept."""

    @property
    def num_boundaries(self) -> int:
        """L+1."""

    @property
    def device(self) -> torch.device:
        """Where `of_tokens` puts them."""

    def of_tokens(self, rows: Tensor) -> Tensor:
        """Return the states of some tokens in float64, shape (len(rows), L+1, hidden); a row is b * tokens + t."""


class BoundaryStates:
    """The boundary states of one batch, copied out of the forward pass: (L+1, hidden) for every token.

    One buffer serves all batches, so that memory is that of the largest batch.
    """

    def __init__(self, num_boundaries: int) -> None:
        self.num_boundaries = num_boundaries
        self._buffer: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the states are."""
        assert self._buffer is not None
        return self._buffer.device

    def keep(self, boundary: int, hidden: Tensor) -> None:
        """Copy one boundary, shape (batch, tokens, hidden)."""
        rows = hidden.shape[0] * hidden.shape[1]
        if self._buffer is None or self._buffer.shape[0] < rows:
            self._buffer = hidden.new_empty(rows, self.num_boundaries, hidden.shape[-1])
        elif hidden.dtype.itemsize > self._buffer.dtype.itemsize:  # Mamba's stream is wider behind its first layer
            self._buffer = self._buffer.to(hidden.dtype)
        self._buffer[:rows, boundary].copy_(hidden.reshape(rows, -1))

    def of_tokens(self, rows: Tensor) -> Tensor:
        """Return the states of some tokens in float64, shape (len(rows), L+1, hidden); a row is b * tokens + t."""
        assert self._buffer is not None
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 == len(rows):  # no padding in between: a view, one copy less
            return self._buffer[first : last + 1].double()
        return self._buffer[send(rows, self._buffer.device)].double()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Weights:
    """How the real tokens of a batch make up one value per sequence; matrices of shape (sequences, real tokens)."""

    rows: Tensor
    """Indices b * tokens + t of the real tokens."""
    first: Tensor
    last: Tensor
    rest: Tensor
    """The mean over positions 1.. of the sequence."""

    used: Mapping[str, Tensor]
    """Which of the real tokens the criteria of the `last` token and of `all` tokens read; stays on the CPU."""

    def to(self, device: torch.device) -> "_Weights":
        """Return the same with the matrices on a device; the rest stays."""
        first, last, rest = (send(matrix, device) for matrix in (self.first, self.last, self.rest))
        return replace(self, first=first, last=last, rest=rest)

    def read(self, kind: str, part: slice) -> slice | Tensor | None:
        """Return which tokens of a chunk the criteria of a kind read: a slice where they are neighbours."""
        places = self.used[kind][part].nonzero()[:, 0]
        if not len(places):
            return None
        low, high = int(places[0]), int(places[-1]) + 1
        return slice(low, high) if high - low == len(places) else places


def _weights(lengths: Sequence[int], tokens: int, sample: Sequence[Sequence[int]] | None) -> _Weights:
    samples = sample or [range(1, length) for length in lengths]
    used = [sorted({0, length - 1, *chosen}) for length, chosen in zip(lengths, samples, strict=True)]
    rows = torch.tensor([t + b * tokens for b, positions in enumerate(used) for t in positions])
    first, last, rest = torch.zeros(3, len(lengths), len(rows), dtype=torch.float64)
    offset = 0
    for b, positions in enumerate(used):
        first[b, offset] = 1.0
        last[b, offset + len(positions) - 1] = 1.0
        chosen = torch.tensor(samples[b])
        rest[b, offset + torch.searchsorted(torch.tensor(positions), chosen)] = 1.0 / len(chosen)
        offset += len(positions)
    read = {"last": (last != 0).any(0), "all": (rest != 0).any(0)}
    return _Weights(rows=rows, first=first, last=last, rest=rest, used=read)


def sequence_scores(
    states: States,
    lengths: Sequence[int],
    tokens: int,
    criteria: Sequence[Criterion],
    sample: Sequence[Sequence[int]] | None = None,
) -> dict[str, Floats]:
    """Return {criterion: (sequences, pairs)} and both NORMS: (sequences, L+1); float64.

    `lengths` are the real tokens of each sequence of a right-padded batch of `tokens` columns. Pairs are those of
    `np.triu_indices(L+1, 1)`. A criterion of the last token takes the last real one, a criterion of all tokens the
    mean over positions 1.. of each sequence, or over those of `sample` (ascending, for each sequence). A GPU is not
    waited for between chunks, but for criteria without a fast path: what is unsound is found in the sums, and named
    then.
    Raises NumericsError, naming the layer, at NaN or Inf, or where a zero vector would need an angle.
    """
    weights = _weights(lengths, tokens, sample)
    keep = any(c.from_pairs is None for c in criteria)
    count = states.num_boundaries
    pairs = count * (count - 1) // 2
    sums: dict[str, Tensor] = {}
    step = CHUNK_TOKENS
    if states.device.type != "cpu":
        step = max(GPU_CHUNK_BYTES // states.of_tokens(weights.rows[:1]).nbytes, 1)
    for low in range(0, len(weights.rows), step):
        part = slice(low, low + step)
        chunk, gram = _gram(states, weights.rows[part], keep=keep)
        if not sums:
            weights = weights.to(gram.device)
            sizes = {c.name: pairs for c in criteria} | dict.fromkeys((*NORMS, ZEROS), count)
            sums = {name: gram.new_zeros(len(lengths), size) for name, size in sizes.items()}
        squared = torch.diagonal(gram, dim1=1, dim2=2)
        norms = squared.sqrt()
        sums[NORMS[0]] += weights.first[:, part] @ norms
        sums[NORMS[1]] += weights.rest[:, part] @ norms
        for kind, matrix in (("last", weights.last), ("all", weights.rest)):
            chosen = [c for c in criteria if c.tokens == kind]
            here = weights.read(kind, part) if chosen else None
            if here is None:
                continue
            here = here if isinstance(here, slice) else send(here, gram.device)
            share = matrix[:, part][:, here]
            if any(c.undefined_at_zero for c in chosen):
                sums[ZEROS] += share @ (squared[here] == 0).double()
            if keep:  # a criterion of somebody's own is not asked about what is no number
                _check_sound(sums, ())
            for name, values in _values(chosen, chunk, gram, here).items():
                sums[name] += share @ values
    _check_sound(sums, criteria)
    return {name: value.cpu().numpy() for name, value in sums.items() if name != ZEROS}


def _gram(states: States, rows: Tensor, *, keep: bool) -> tuple[Tensor, Tensor]:
    """Return (states, Gram matrices) of some tokens in float64, where the states are; only some without `keep`."""
    on_cpu = states.device.type == "cpu"
    chunk = states.of_tokens(rows[:CACHED_TOKENS] if on_cpu and not keep else rows)
    if keep or not on_cpu:
        return chunk, torch.bmm(chunk, chunk.mT)
    gram = chunk.new_empty(len(rows), states.num_boundaries, states.num_boundaries)
    for low in range(0, len(rows), CACHED_TOKENS):
        part = slice(low, low + CACHED_TOKENS)
        chunk = states.of_tokens(rows[part]) if low else chunk
        torch.bmm(chunk, chunk.mT, out=gram[part])
    return chunk, gram


def _values(criteria: Sequence[Criterion], chunk: Tensor, gram: Tensor, here: slice | Tensor) -> dict[str, Tensor]:
    """Return {criterion: (tokens, pairs)} for some tokens of a chunk."""
    start, end = torch.triu_indices(gram.shape[1], gram.shape[1], 1, device=gram.device)
    chosen = gram[here]
    squared = torch.diagonal(chosen, dim1=1, dim2=2)
    pairs = Pairs(dot=chosen[:, start, end], start_squared=squared[:, start], end_squared=squared[:, end])
    states = chunk[here] if any(c.from_pairs is None for c in criteria) else chunk
    return {c.name: _fast_values(c, pairs) if c.from_pairs else _score_pairs(c, states) for c in criteria}


def _fast_values(criterion: Criterion, pairs: Pairs) -> Tensor:
    assert criterion.from_pairs is not None
    values = criterion.from_pairs(pairs)
    if values.shape != pairs.dot.shape:
        raise NumericsError(
            f"The fast path of criterion {criterion.name!r} returned shape {tuple(values.shape)}; it must give "
            f"{tuple(pairs.dot.shape)}, one value per token and pair."
        )
    return values


def _score_pairs(criterion: Criterion, states: Tensor) -> Tensor:
    """Return a criterion's own score for every pair of boundaries, (tokens, pairs): the slow way, all it needs."""
    if criterion.score is None:
        raise NumericsError(f"The criterion {criterion.name!r} has neither a score nor a fast path; give it a score.")
    count = states.shape[1]
    columns = []
    for i in range(count - 1):
        end = states[:, i + 1 :]
        values = criterion.score(states[:, i, None].expand_as(end), end)
        if values.shape != end.shape[:-1]:
            raise NumericsError(
                f"The criterion {criterion.name!r} returned shape {tuple(values.shape)} for inputs of shape "
                f"{tuple(end.shape)}; it must give one value per token, shape {tuple(end.shape[:-1])}."
            )
        columns.append(values.double())
    return torch.cat(columns, dim=1)


def _check_sound(sums: Mapping[str, Tensor], criteria: Sequence[Criterion]) -> None:
    """Raise NumericsError, naming the layer or the criterion, where the sums say that something was no number.

    A weight of 0 times NaN or Inf is NaN: whatever a chunk holds shows in its sums.
    """
    good = torch.cat([sums[name] for name in NORMS]).isfinite().all(0)
    if not bool(good.all()):
        boundary = int((~good).nonzero()[0, 0])
        where = "The embeddings give" if boundary == 0 else f"Layer {boundary - 1} gives"
        raise NumericsError(f"{where} NaN or Inf activations; compute in float32, or check the weights.")
    zero = (sums[ZEROS] != 0).any(0)
    if bool(zero.any()):
        raise NumericsError(
            f"A token's residual stream is exactly zero at boundary {int(zero.nonzero()[0, 0])}, and a zero vector "
            "has no angle; leave that text out, or measure only euclidean_last."
        )
    for criterion in criteria:
        if not bool(sums[criterion.name].isfinite().all()):
            raise NumericsError(f"The criterion {criterion.name!r} returned NaN or Inf; mend it, or leave it out.")


# A fixed sample of tokens with their states at every boundary, for criteria that fit something.
#
# Taken in the same forward pass as everything else; kept in a raw file beside the checkpoint, so that a killed
# measurement goes on with the same sample.

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
        found = read_back(self.path, np.float32, sum(counts) * self.num_boundaries * self.hidden)
        if found is None:
            return False
        self.states = list(torch.from_numpy(found.reshape(-1, *self._shape)).split(counts))
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


# The score of every row of text by every criterion, kept while a measurement runs: what random orders are made of.

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
