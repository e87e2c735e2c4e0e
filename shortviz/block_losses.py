"""The loss of one model without each of many blocks, on one window: by replay, or by really running pruned models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from shortviz.errors import NumericsError, PlanError
from shortviz.handle import ModelHandle
from shortviz.logits import LogitHead, open_head
from shortviz.progress import NO_WATCH, Watch
from shortviz.pruning import prune
from shortviz.records import Block, Floats, PrunePlan, Tokens
from shortviz.replay import Recording, Replay, find_tail, record
from shortviz.tiled_head import Target, TiledHead, is_tileable
from shortviz.window_scores import BaseWindow, WindowScore, compare_window, score_base, score_window

CHECKED_TOKENS = 64
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Nats by which replay may differ from the pruned model in the check; LOW_PRECISION for other dtypes."""
LOW_PRECISION = 0.05

Measured = tuple[list[Block], Floats]
"""Blocks in some order, and their (NLL, KL), shape (2, blocks), means over the window's scored tokens."""


class OpenWindow(Protocol):
    """The uncut model on one window, ready to tell what it loses without any block."""

    @property
    def base(self) -> WindowScore:
        """The uncut model's score."""

    def losses(self, blocks: Sequence[Block], watch: Watch = NO_WATCH) -> Measured | None:
        """Return NLL and KL without each block; None when stopped on the way."""


class Engine(Protocol):
    """A way to measure."""

    @property
    def replayed(self) -> bool:
        """Whether suffixes are replayed, not pruned models run."""

    def open(self, tokens: Tokens) -> OpenWindow:
        """Run the uncut model on a window, shape (tokens,)."""


def open_engine(handle: ModelHandle, tokens: Tokens, like: Engine | None = None) -> Engine:
    """Return the fastest way that agrees with really pruned models on the first tokens.

    Tried in this order: replay of several blocks at once; replay block by block, for families whose layers take
    arguments that fit one batch size only; the pruned models themselves. `like` is the engine of a model that this one
    was cut from: what agreed there is taken over unchecked, for the layers are the same.
    """
    head = open_head(handle, torch.tensor(tokens))
    probe = tokens[:CHECKED_TOKENS]
    tail = find_tail(handle, torch.tensor(probe)) if head.split and is_tileable(handle.model) else None
    pruned = PrunedEngine(handle=handle, head=head)
    if tail is not None and isinstance(like, ReplayEngine):
        return ReplayEngine(head=head, replay=Replay(handle=handle, tail=tail, stacked=like.replay.stacked))
    if tail is not None and like is None:
        blocks, expected = _expected(pruned, probe)
        for stacked in (True, False):
            engine = ReplayEngine(head=head, replay=Replay(handle=handle, tail=tail, stacked=stacked))
            if blocks and _agrees(engine, probe, blocks, expected):
                return engine
    return pruned


def _expected(pruned: "PrunedEngine", tokens: Tokens) -> Measured:
    """Return the losses of a few really pruned models: blocks at both ends and in the middle that the config allows."""
    layers = pruned.handle.info.num_layers
    wanted = [(0, 1), (layers // 2, 1), (layers - 1, 1), (layers // 2 - 1, 2), (1, 2), (0, layers // 2)]
    fitting = [Block(start=s, n=n) for s, n in dict.fromkeys(wanted) if n < layers and s + n <= layers]
    measured = pruned.open(tokens).losses(fitting)
    assert measured is not None, "nobody could have stopped it"
    blocks, losses = measured
    legal = np.flatnonzero(np.isfinite(losses[0]))[:3]
    return [blocks[i] for i in legal], losses[:, legal]


def _agrees(engine: "ReplayEngine", tokens: Tokens, blocks: Sequence[Block], expected: Floats) -> bool:
    handle = engine.head.handle
    try:
        measured = engine.open(tokens).losses(blocks)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False  # layer arguments that do not fit: what the check is there to find out
    assert measured is not None, "nobody could have stopped it"
    order = [blocks.index(block) for block in measured[0]]
    tolerance = TOLERANCE.get(handle.model.dtype, LOW_PRECISION)
    return bool(np.all(np.abs(measured[1] - expected[:, order]) <= tolerance))


@dataclass(frozen=True, kw_only=True, eq=False)
class ReplayEngine:
    """Suffixes replayed from the uncut model's boundaries."""

    head: LogitHead
    replay: Replay
    replayed: bool = True

    @torch.inference_mode()
    def open(self, tokens: Tokens) -> "ReplayWindow":
        """Run the uncut model on a window, shape (tokens,)."""
        base = score_window(self.head, tokens)
        ids = torch.tensor(tokens, device=self.head.handle.model.device)
        recording = record(self.head.handle, ids)
        tiles = TiledHead(handle=self.head.handle)
        target = tiles.target(recording.head_states[:-1], ids[1:])
        return ReplayWindow(base=base, replay=self.replay, recording=recording, tiles=tiles, target=target)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReplayWindow:
    """A window whose boundaries are known."""

    base: WindowScore
    replay: Replay
    recording: Recording
    tiles: TiledHead
    target: Target

    @torch.inference_mode()
    def losses(self, blocks: Sequence[Block], watch: Watch = NO_WATCH) -> Measured | None:
        """Return NLL and KL without each block; None when stopped on the way."""
        found = self.replay.final_states(self.recording, blocks, watch)
        if found is None:
            return None
        ordered, states = found
        nll, kl = self.tiles.losses(states[:, :-1], self.target)
        return ordered, torch.stack([nll, kl]).cpu().numpy()


@dataclass(frozen=True, kw_only=True, eq=False)
class PrunedEngine:
    """Every pruned model is built and run."""

    handle: ModelHandle
    head: LogitHead
    replayed: bool = False

    def open(self, tokens: Tokens) -> "PrunedWindow":
        """Run the uncut model on a window, shape (tokens,)."""
        uncut = score_base(self.head, tokens)
        return PrunedWindow(base=uncut.score, handle=self.handle, tokens=tokens, uncut=uncut)


@dataclass(frozen=True, kw_only=True, eq=False)
class PrunedWindow:
    """A window on which pruned models are compared with the uncut one."""

    base: WindowScore
    handle: ModelHandle
    tokens: Tokens
    uncut: BaseWindow

    def losses(self, blocks: Sequence[Block], watch: Watch = NO_WATCH) -> Measured | None:
        """Return NLL and KL without each block, NaN where it is illegal or overflows; None when stopped."""
        losses = np.full((2, len(blocks)), np.nan)
        for index, block in enumerate(blocks):
            if watch.stopped:
                return None
            try:
                pruned = prune(self.handle, PrunePlan.of_blocks(self.handle.info.num_layers, block))
                head = open_head(pruned, torch.tensor(self.tokens))
                score, change = compare_window(head, self.tokens, self.uncut)
            except (PlanError, NumericsError):
                continue
            losses[:, index] = score.nll, change.kl
        return list(blocks), losses
