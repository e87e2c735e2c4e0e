"""measure_distances: one streaming pass, all criteria, every block."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shortviz import criteria as known
from shortviz.analysis.rows_needed import count_rows_needed
from shortviz.criteria.base import Criterion, Score
from shortviz.errors import ShortvizError, Stopped
from shortviz.measure.batches import batches_by_length, check_rows, places_of, sent_ahead
from shortviz.measure.gram import NORMS, BoundaryStates, TokenSample, sequence_scores
from shortviz.measure.processes import Ranks, added_up
from shortviz.measure.row_scores import RowScores
from shortviz.model.delta import load_checkpoint, model_facts, save_checkpoint
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import residual_boundaries
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.json import Floats
from shortviz.records.measured import BlockDistances, BoundaryNorms, RowsNeeded
from shortviz.records.model import ModelInfo
from shortviz.records.sums import Sums, pack, unpack
from shortviz.records.text import Tokens, TokenSet

# From sums over rows to the record of distances: shared by the pass in memory and the streamed one.


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


CHECKPOINT_SECONDS = 2.0
"""A checkpoint is written at most this often; at most this and one batch are lost by a kill."""
_FORMAT = 3
"""Of what a checkpoint holds; one of another format belongs to another measurement."""
_FIRST, _REST = NORMS


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
    if batch_size < 1:
        raise ShortvizError(f"The batch size is {batch_size}; it must be at least 1.")
    check_rows(handle.info, tokens)
    chosen = [known.resolve(c) for c in criteria or known.names()]
    every = batches_by_length(tokens.rows, batch_size)
    mine = range(len(every)) if ranks is None else ranks.mine(len(every))
    own = [row for i in mine for row in every[i]]
    checkpoint = checkpoint if ranks is None or checkpoint is None else ranks.checkpoint(checkpoint)
    key = _key(handle, tokens, chosen, batch_size if ranks is not None else None)
    began, saved = time.monotonic(), time.monotonic()
    states = BoundaryStates(handle.info.num_layers + 1)
    sample = None
    if any(c.from_sample for c in chosen):
        places, hidden = places_of(every, mine), handle.info.hidden_size
        sample = TokenSample.of_rows(len(tokens.rows), states.num_boundaries, hidden, checkpoint, places)
    pairs = states.num_boundaries * (states.num_boundaries - 1) // 2
    rows = RowScores.beside(checkpoint, [c.name for c in chosen if not c.from_sample], pairs)
    sums, done, seconds_before = _resume(checkpoint, key, chosen, handle, sample, own)
    rows.restore(done)
    batches = [own[low : low + batch_size] for low in range(done, len(own), batch_size)]

    def record(complete: bool = False) -> BlockDistances:
        seconds = seconds_before + time.monotonic() - began
        found = distances_record(handle.info, tokens, chosen, sums, sample if complete else None, seconds)
        return replace(found, settling=rows_needed_of(handle.info, rows)) if complete else found

    for batch, ids in zip(batches, sent_ahead(batches, handle.model.device), strict=True):
        if watch.stopped:
            break
        scores = _measure_batch(handle, states, batch, ids, chosen, sample)
        sums = {name: s.add(scores[name]) for name, s in sums.items()}
        rows.add(scores)
        done += len(batch)
        if checkpoint is not None and (done == len(own) or time.monotonic() - saved > CHECKPOINT_SECONDS):
            spent = seconds_before + time.monotonic() - began
            arrays = pack(sums) | {"done": np.array(float(done)), "seconds": np.array(spent)}
            save_checkpoint(checkpoint, key, arrays)
            saved = time.monotonic()
        watch.tell("measure", done=done, total=len(own), unit="rows", snapshot=record)
    if ranks is not None:
        sums, sample, rows = added_up(ranks, sums, sample, rows, [len(batch) for batch in every])
    if sums[_FIRST].count == 0:
        raise Stopped("Stopped before the first batch was measured; there is nothing to keep.")
    return record(complete=True)


def _measure_batch(
    handle: ModelHandle,
    states: BoundaryStates,
    rows: Sequence[Tokens],
    ids: Tensor,
    criteria: Sequence[Criterion],
    sample: TokenSample | None,
) -> Mapping[str, Floats]:
    lengths = [len(row) for row in rows]
    with handle.lock, torch.inference_mode(), residual_boundaries(handle, states.keep) as decoder:
        decoder(input_ids=ids, use_cache=False)
    scores = sequence_scores(states, lengths, max(lengths), [c for c in criteria if not c.from_sample])
    if sample is not None:
        sample.add(states, lengths, max(lengths))
    return scores


def _key(handle: ModelHandle, tokens: TokenSet, criteria: Sequence[Criterion], batch_size: int | None) -> str:
    """Return a fingerprint of everything the sums depend on; how rows are shared among processes is told too."""
    facts: list[object] = [_FORMAT, *model_facts(handle)]
    facts += [tokens.info.fingerprint, [c.name for c in criteria], batch_size]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _resume(
    checkpoint: Path | None,
    key: str,
    criteria: Sequence[Criterion],
    handle: ModelHandle,
    sample: TokenSample | None,
    rows: Sequence[Tokens],
) -> tuple[dict[str, Sums], int, float]:
    """Return (sums, rows done, seconds spent) of a checkpoint, or of nothing; the sample is filled as far."""
    size = handle.info.num_layers + 1
    arrays = load_checkpoint(checkpoint, key) if checkpoint is not None else None
    if arrays is not None:
        done = int(arrays["done"])
        if sample is None or sample.restore([len(row) for row in rows[:done]]):
            return unpack(arrays), done, float(arrays["seconds"])
    if sample is not None:
        sample.discard()
    return empty_sums(criteria, size), 0, 0.0
