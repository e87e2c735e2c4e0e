"""Speed of a cut model beside the uncut one, in turns in one process: tokens a second of prefill and of decoding."""

import time
from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from shortviz.measure.generation import greedy
from shortviz.measure.logits import synchronise
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.ledger import Pace
from shortviz.records.text import Tokens

TURNS: Final = 6
"""Of each model; the least counts, and the spread is that of the least of three groups of them."""
ROW: Final = 256
"""Tokens of a row of prefill; fewer where the model's context is shorter."""
ROWS: Final = (1, 8)
PROMPT: Final = 16
"""Tokens in front of what is decoded."""
DECODED: Final = 32


def measure_paces(
    uncut: ModelHandle, cut: ModelHandle, tokens: Tokens, *, turns: int = TURNS, watch: Watch = NO_WATCH
) -> tuple[Pace, ...]:
    """Return the seconds that both models take for the same tokens of text, in turns.

    Both meet the same machine, whatever else runs on it; who is first changes from turn to turn. A turn of each that
    is not counted comes first. What the clock can tell from this is for `analysis.evidence.speed` to say. Raises
    Stopped where a stop was asked for.
    """
    context = uncut.info.context_length or ROW + PROMPT
    row, decoded = min(ROW, context), min(DECODED, context - min(PROMPT, context // 2))
    ids = torch.from_numpy(np.resize(tokens, (max(ROWS), row)).astype(np.int64))
    works = [(f"prefill, {rows} x {row} tokens", rows * row, _prefill(ids[:rows])) for rows in ROWS] + [
        (f"decode, 1 x {decoded} tokens", decoded, _decode(ids[:1, : min(PROMPT, context // 2)], decoded))
    ]
    found = []
    for done, (name, count, work) in enumerate(works):
        seconds: dict[int, list[float]] = {0: [], 1: []}
        for turn in range(turns + 1):
            for which in (0, 1) if turn % 2 else (1, 0):
                watch.check("Stopped while the speed was measured.")
                took = work((uncut, cut)[which])
                if turn:
                    seconds[which].append(took)
            watch.tell("speed", done=done * turns + turn, total=len(works) * turns, unit="turns", detail=name)
        found.append(Pace(name=name, tokens=count, uncut=tuple(seconds[0]), cut=tuple(seconds[1])))
    return tuple(found)


def _timed(handle: ModelHandle, run: Callable[[], torch.Tensor]) -> float:
    with handle.lock, torch.inference_mode():
        started = time.perf_counter()
        synchronise(run())
        return time.perf_counter() - started


def _prefill(ids: torch.Tensor) -> Callable[[ModelHandle], float]:
    """Return what times the layers on rows of tokens, with the cache filled; the head has one token a row to do."""

    def work(handle: ModelHandle) -> float:
        decoder, there = layer_stack(handle.model).decoder, ids.to(handle.model.device)
        return _timed(handle, lambda: decoder(input_ids=there, use_cache=True)[0])

    return work


def _decode(ids: torch.Tensor, count: int) -> Callable[[ModelHandle], float]:
    """Return what times the model's own greedy generation, token by token, with its cache."""

    def work(handle: ModelHandle) -> float:
        settings, there = greedy(handle, count), ids.to(handle.model.device)
        settings.min_new_tokens = count
        call = {"input_ids": there, "attention_mask": torch.ones_like(there), "generation_config": settings}
        return _timed(handle, lambda: handle.model.generate(**call))

    return work
