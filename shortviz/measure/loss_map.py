"""measure_losses: the measured map, coarse first, then refined window by window."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from shortviz.errors import NumericsError, PlanError, Stopped
from shortviz.measure.logits import LogitHead, open_head
from shortviz.measure.losses import (
    BaseWindow,
    WindowScore,
    check_windows,
    compare_window,
    score_base,
    score_of_windows,
    score_window,
)
from shortviz.measure.processes import Ranks
from shortviz.measure.replay import Recording, Replay, Target, TiledHead, find_tail, is_tileable, record
from shortviz.model.delta import load_checkpoint, model_facts, save_checkpoint
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.json import Floats
from shortviz.records.measured import BlockLosses, Score
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.sums import CellSums
from shortviz.records.text import Tokens, WindowSet

# The loss of one model without each of many blocks, on one window: by replay, or by really running pruned models.

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


CHECKPOINT_SECONDS = 2.0
"""A checkpoint is written at most this often, after a group of rows; this and one group are lost by a kill."""
COARSE_TOKENS = 128
"""The first look at the whole map is on so many tokens."""
GROUP_TOKENS = 8192
"""Rows of the map are measured together up to this many tokens (blocks x window), at least one row."""


def measure_losses(
    handle: ModelHandle,
    windows: WindowSet,
    *,
    priority: Sequence[int] = (),
    coarse_tokens: int = COARSE_TOKENS,
    checkpoint: Path | None = None,
    ranks: Ranks | None = None,
    watch: Watch = NO_WATCH,
) -> BlockLosses:
    """Return NLL and KL(uncut || pruned) for every block (start, n), n < L, on the same windows, in nats per token.

    Equal to `evaluate` of the pruned models. First every block on the first `coarse_tokens` tokens (0: not), so that
    the whole map is there early; then window after window, each replacing or refining what is there. Rows (values of
    n) in `priority` come first; the list is read again before each step, so that it may change meanwhile, and does not
    change the results. Partial records come by `Progress.snapshot`. With a `checkpoint` path a killed run goes on from
    there with bit-equal sums. After a stop, what there is is returned. Of several processes (`ranks`) each takes
    every size-th window and keeps its own checkpoint; all return the sums of all.

    Memory above the model: L+1 boundaries of one window, and the states of a group of rows, twice: GROUP_TOKENS
    tokens or one row of the map, whichever is more; logits never more than a tile of 8 MB.

    A cell is NaN where the config cannot express the cut and replay is not possible, or where the cut model overflows.
    Raises Stopped when stopped before the first group, TextError, NumericsError, RunError as `evaluate` and
    `measure_distances` do.
    """
    check_windows(handle, windows)
    passes = _passes(windows, coarse_tokens)
    groups = [_groups(handle.info.num_layers, len(p.tokens)) for p in passes]
    key = _key(handle, windows, coarse_tokens)
    checkpoint = checkpoint if ranks is None or checkpoint is None else ranks.checkpoint(checkpoint)
    mine = range(len(passes)) if ranks is None else ranks.mine(len(passes))
    state = _resume(checkpoint, key, handle.info.num_layers, groups, mine)
    began, saved, before = time.monotonic(), time.monotonic(), state.seconds
    engine = open_engine(handle, windows.tokens[0])

    def record() -> BlockLosses:
        return _record(handle, windows, passes, state, replayed=engine.replayed)

    for index, one in enumerate(passes):
        opened: OpenWindow | None = None
        while (group := _next_group(groups[index], state.done[index], priority)) is not None:
            if watch.stopped:
                break
            opened = opened or engine.open(one.tokens)
            if not _measure_group(state, opened, one, groups[index][group], watch):
                break
            state.base[:, index] = opened.base.nll, opened.base.seconds
            state.done[index, group] = 1
            state.seconds = before + time.monotonic() - began
            if checkpoint is not None and (state.finished or time.monotonic() - saved > CHECKPOINT_SECONDS):
                save_checkpoint(checkpoint, key, state.pack())
                saved = time.monotonic()
            watch.tell(
                "map",
                done=_blocks_done(groups, state.done),
                total=sum(_num_blocks(groups[i]) for i in mine),
                unit="blocks",
                detail=one.name,
                snapshot=record,
            )
    if ranks is not None:
        state = _added_up(ranks, state)
    if not np.any(state.done == 1):
        raise Stopped("Stopped before the first rows of the map were measured; there is nothing to keep.")
    return record()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Pass:
    """Every block once, on one row of tokens."""

    name: str
    tokens: Tokens
    coarse: bool


@dataclass(kw_only=True, slots=True, eq=False)
class _State:
    """Everything a killed run needs to go on."""

    sums: CellSums
    done: Floats
    """1 for groups done, 0 for others, NaN beyond the last and for other processes' passes; (passes, most groups)."""
    base: Floats
    """NLL and seconds of the uncut model, shape (2, passes); NaN where not measured."""
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        return not bool(np.any(self.done == 0))

    def pack(self) -> dict[str, Floats]:
        return self.sums.pack() | {"done": self.done, "base": self.base, "seconds": np.array(self.seconds)}


Group = tuple[Block, ...]
"""Whole rows of the map, measured together."""


def _passes(windows: WindowSet, coarse_tokens: int) -> list[_Pass]:
    count, length = windows.tokens.shape
    passes = [
        _Pass(name=f"window {i + 1} of {count}", tokens=tokens, coarse=False) for i, tokens in enumerate(windows.tokens)
    ]
    if 2 <= coarse_tokens < length:
        first = windows.tokens[0, :coarse_tokens]
        passes.insert(0, _Pass(name=f"first look, {coarse_tokens} tokens", tokens=first, coarse=True))
    return passes


def _groups(num_layers: int, length: int) -> list[Group]:
    """Return the rows 1..L-1 of the map in groups. They do not depend on the work order, so that sums do not either."""
    groups: list[Group] = []
    for n in range(1, num_layers):
        row = tuple(Block(start=start, n=n) for start in range(num_layers - n + 1))
        if groups and (len(groups[-1]) + len(row)) * length <= GROUP_TOKENS:
            groups[-1] += row
        else:
            groups.append(row)
    return groups


def _next_group(groups: Sequence[Group], done: Floats, priority: Sequence[int]) -> int | None:
    """Return the group to do next: the one with the row wanted most, else the first left; None when all are done."""
    left = [i for i in range(len(groups)) if done[i] == 0]
    wanted = [i for n in list(priority) for i in left if any(block.n == n for block in groups[i])]
    return next(iter([*wanted, *left]), None)


def _measure_group(state: _State, opened: OpenWindow, one: _Pass, group: Group, watch: Watch) -> bool:
    """Add a group's samples to the sums; False when stopped on the way, with nothing added."""
    measured = opened.losses(group, watch)
    if measured is None:
        return False
    blocks, (nll, kl) = measured
    rows, starts = np.array([b.n - 1 for b in blocks]), np.array([b.start for b in blocks])
    samples = np.stack([nll, nll - opened.base.nll, kl])
    if one.coarse:
        state.sums.coarse[:, rows, starts] = samples
    else:
        state.sums.add(rows, starts, samples)
    return True


def _num_blocks(groups: Sequence[Group]) -> int:
    return sum(len(group) for group in groups)


def _blocks_done(groups: Sequence[Sequence[Group]], done: Floats) -> int:
    return sum(len(group) for i, g in enumerate(groups) for j, group in enumerate(g) if done[i, j] == 1)


def _key(handle: ModelHandle, windows: WindowSet, coarse_tokens: int) -> str:
    """Return a fingerprint of everything the sums depend on."""
    facts: list[object] = ["losses", *model_facts(handle)]
    facts += [windows.info.fingerprint, windows.tokens.shape, coarse_tokens, GROUP_TOKENS]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _resume(
    checkpoint: Path | None, key: str, num_layers: int, groups: Sequence[Sequence[Group]], mine: Sequence[int]
) -> _State:
    arrays = load_checkpoint(checkpoint, key) if checkpoint is not None else None
    if arrays is not None:
        sums, seconds = CellSums.unpack(arrays), float(arrays["seconds"])
        return _State(sums=sums, done=arrays["done"], base=arrays["base"], seconds=seconds)
    done = np.full((len(groups), max(len(g) for g in groups)), np.nan)
    for index in mine:
        done[index, : len(groups[index])] = 0
    return _State(sums=CellSums.zeros(num_layers), done=done, base=np.full((2, len(groups)), np.nan))


def _added_up(ranks: Ranks, state: _State) -> _State:
    """Return the state of all processes together: sums added, and for each pass what its own process says of it."""
    every = ranks.all(state.pack())
    sums = CellSums.zeros(state.sums.count.shape[0])
    for one in every:
        sums.merge(CellSums.unpack(one))
    done, base = (np.fmax.reduce([one[name] for one in every]) for name in ("done", "base"))
    return _State(sums=sums, done=done, base=base, seconds=max(float(one["seconds"]) for one in every))


def _base_score(handle: ModelHandle, passes: Sequence[_Pass], state: _State) -> Score:
    """Return the uncut model's score on the whole windows measured, or on the coarse piece while there is none."""
    known = [i for i in range(len(passes)) if np.isfinite(state.base[0, i])]
    whole = [i for i in known if not passes[i].coarse] or known
    return score_of_windows(
        handle,
        [
            WindowScore(nll=float(state.base[0, i]), tokens=len(passes[i].tokens) - 1, seconds=float(state.base[1, i]))
            for i in whole
        ],
    )


def _record(
    handle: ModelHandle, windows: WindowSet, passes: Sequence[_Pass], state: _State, *, replayed: bool
) -> BlockLosses:
    grids = state.sums.grids()
    count = state.sums.count.astype(np.int64)
    coarse = np.isfinite(state.sums.coarse[0]) & (count == 0)
    return BlockLosses(
        num_layers=handle.info.num_layers,
        base=_base_score(handle, passes, state),
        nll=grids["nll"],
        increase=grids["increase"],
        kl=grids["kl"],
        windows=count,
        tokens=np.where(coarse, len(passes[0].tokens) - 1, count * (windows.tokens.shape[1] - 1)),
        text=windows.info,
        replayed=replayed,
        complete=state.finished,
        seconds=state.seconds,
    )
