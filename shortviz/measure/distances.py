"""The distance over every block by every criterion, in one pass of the text through the model."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from shortviz import criteria as known
from shortviz.analysis.rows_needed import count_rows_needed
from shortviz.criteria.base import Criterion, Score
from shortviz.errors import ShortvizError, Stopped
from shortviz.measure.batches import batches_by_length, check_rows, places_of, sent_ahead
from shortviz.measure.gram import NORMS, BoundaryStates, RowScores, States, TokenSample, sequence_scores
from shortviz.measure.processes import ALONE, Ranks, added_up
from shortviz.model.delta import checkpoint_key, load_checkpoint, save_checkpoint
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import residual_boundaries
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.measured import BlockDistances, BoundaryNorms, RowsNeeded
from shortviz.records.model import ModelInfo
from shortviz.records.sums import Sums, pack, unpack
from shortviz.records.text import TokenSet

CHECKPOINT_SECONDS = 2.0
"""A checkpoint is written at most this often; at most this and one batch are lost by a kill."""
_FORMAT = 3
"""Of what a checkpoint holds; one of another format belongs to another measurement."""


class Measurement:
    """What a measurement adds up over the rows of a text, whether its model is in memory or streamed.

    Of several processes each has its share of the batches. The sums are Sums by name, of all criteria that are summed
    and of both norms; beside them are the scores row by row and a sample of tokens for criteria that fit something.
    """

    def __init__(
        self,
        info: ModelInfo,
        tokens: TokenSet,
        criteria: Sequence[str | Criterion | Score] | None,
        batch_size: int,
        *,
        beside: Path | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Start with the sums of no row; scores and sample are in files `beside` a checkpoint too, where there is one.

        Raises ShortvizError where the batch size makes no sense, TextError where a row does not fit the model.
        """
        if batch_size < 1:
            raise ShortvizError(f"The batch size is {batch_size}; it must be at least 1.")
        check_rows(info, tokens)
        self.info, self.text, self._ranks = info, tokens.info, ranks
        self.chosen = [known.resolve(c) for c in criteria or known.names()]
        self._summed = [c for c in self.chosen if not c.from_sample]
        every = batches_by_length(tokens.rows, batch_size)
        mine = ranks.mine(len(every))
        self.batches, self._batch_rows = [every[i] for i in mine], [len(batch) for batch in every]
        self.total = sum(self._batch_rows[i] for i in mine)
        boundaries = info.num_layers + 1
        pairs = boundaries * (boundaries - 1) // 2
        self.sums = {c.name: Sums.zeros(pairs) for c in self._summed} | {n: Sums.zeros(boundaries) for n in NORMS}
        self.rows = RowScores.beside(beside, [c.name for c in self._summed], pairs)
        self.sample: TokenSample | None = None
        if len(self._summed) < len(self.chosen):
            places, hidden = places_of(every, mine), info.hidden_size
            self.sample = TokenSample.of_rows(len(tokens.rows), boundaries, hidden, beside, places)

    @property
    def count(self) -> int:
        """Rows measured."""
        return self.sums[NORMS[0]].count

    def add(self, states: States, lengths: Sequence[int], picked: Sequence[Sequence[int]] | None = None) -> None:
        """Add a batch of right-padded rows; token means are taken over the `picked` positions of each, where given."""
        scores = sequence_scores(states, lengths, max(lengths), self._summed, picked)
        self.sums = {name: sums.add(scores[name]) for name, sums in self.sums.items()}
        self.rows.add(scores)
        if self.sample is not None:
            self.sample.add(states, lengths, max(lengths))

    def gather(self) -> None:
        """Add up what all processes have; the whole sample and all rows are then those of rank 0."""
        if self._ranks.size > 1:
            found = added_up(self._ranks, self.sums, self.sample, self.rows, self._batch_rows)
            self.sums, self.sample, self.rows = found

    def record(self, seconds: float, *, complete: bool = True) -> BlockDistances:
        """Return the record of the sums; what is fitted, and how many rows are needed, only where it is complete."""
        size, grids = self.info.num_layers, {}
        for criterion in self.chosen:
            found = self.sums.get(criterion.name, Sums.zeros(size * (size + 1) // 2))
            if criterion.from_sample is not None and self.sample is not None and complete:
                values = criterion.from_sample(*self.sample.tensors())
                found = found if values is None else found.add(values.numpy())
            grids[criterion.name] = found.grid(size)
        first, rest = (self.sums[name].mean for name in NORMS)
        return BlockDistances(
            num_layers=size,
            criteria=grids,
            norms=BoundaryNorms(first=first, rest=rest),
            text=self.text,
            seconds=seconds,
            rows=self.count,
            tokens=self._tokens(),
            settling=self._rows_needed() if complete else {},
        )

    def _tokens(self) -> int:
        """Return the tokens of the rows measured; 0 of a part that several processes measured."""
        if self.count >= sum(self._batch_rows):
            return self.text.tokens
        own = [len(row) for batch in self.batches for row in batch]
        return sum(own[: self.count]) if self._ranks.size == 1 else 0

    def _rows_needed(self) -> dict[str, RowsNeeded]:
        illegal = [(start, n) for start, n, _ in self.info.illegal]
        scores = {name: self.rows.of(name) for name in self.rows.criteria}
        found = {n: count_rows_needed(s, self.info.num_layers, illegal) for n, s in scores.items() if s is not None}
        return {name: one for name, one in found.items() if one is not None}


def measure_distances(
    handle: ModelHandle,
    tokens: TokenSet,
    *,
    criteria: Sequence[str | Criterion | Score] | None = None,
    batch_size: int = 8,
    checkpoint: Path | None = None,
    ranks: Ranks | None = None,
    watch: Watch = NO_WATCH,
) -> BlockDistances:
    """Return every criterion for every block (start, n), averaged over the rows of `tokens`, with standard errors.

    Rows are the samples: a criterion of all tokens is averaged within a row first. The LM head is not run. With a
    `checkpoint` path, a run that was killed goes on from there, with bit-equal sums, or with another batch size. When
    `watch.stop` is set, the rows measured so far are returned. Of several processes (`ranks`) each does its share and
    keeps its own checkpoint; the sums of all are in the record, the fitted criteria in that of rank 0.
    Raises Stopped when stopped before the first batch, TextError where a row does not fit the model, NumericsError at
    NaN or Inf, RunError where the checkpoint belongs to something else.
    """
    ranks = ranks or ALONE
    checkpoint = ranks.checkpoint(checkpoint)
    one = Measurement(handle.info, tokens, criteria, batch_size, beside=checkpoint, ranks=ranks)
    shared = batch_size if ranks.size > 1 else None  # alone it goes on from so many rows, whatever the batches were
    key = checkpoint_key(_FORMAT, handle, tokens.info.fingerprint, [c.name for c in one.chosen], shared)
    states, saved = BoundaryStates(handle.info.num_layers + 1), time.monotonic()
    done, spent = _resume(one, checkpoint, key)
    own = [row for batch in one.batches for row in batch]
    batches = [own[low : low + batch_size] for low in range(done, len(own), batch_size)]
    began = time.monotonic() - spent
    for batch, ids in zip(batches, sent_ahead(batches, handle.model.device), strict=True):
        if watch.stopped:
            break
        with handle.lock, torch.inference_mode(), residual_boundaries(handle, states.keep) as decoder:
            decoder(input_ids=ids, use_cache=False)
        one.add(states, [len(row) for row in batch])
        done += len(batch)
        if checkpoint is not None and (done == len(own) or time.monotonic() - saved > CHECKPOINT_SECONDS):
            progress = {"done": np.array(float(done)), "seconds": np.array(time.monotonic() - began)}
            save_checkpoint(checkpoint, key, pack(one.sums) | progress)
            saved = time.monotonic()
        watch.tell(
            "measure",
            done=one.count,
            total=one.total,
            unit="rows",
            snapshot=lambda: one.record(time.monotonic() - began, complete=False),
        )
    one.gather()
    if one.count == 0:
        raise Stopped("Stopped before the first batch was measured; there is nothing to keep.")
    return one.record(time.monotonic() - began)


def _resume(one: Measurement, checkpoint: Path | None, key: str) -> tuple[int, float]:
    """Return (rows done, seconds spent) of a checkpoint, or of nothing; sums, rows and sample are taken from it."""
    arrays = load_checkpoint(checkpoint, key) if checkpoint is not None else None
    done, seconds = (int(arrays["done"]), float(arrays["seconds"])) if arrays is not None else (0, 0.0)
    lengths = [len(row) for batch in one.batches for row in batch][:done]
    if arrays is not None and (one.sample is None or one.sample.restore(lengths)):
        one.sums = unpack(arrays)
    else:
        done, seconds = 0, 0.0
        if one.sample is not None:
            one.sample.discard()
    one.rows.restore(one.count)
    return done, seconds
