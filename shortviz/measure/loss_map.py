"""The measured loss without every block: the whole map coarsely first, then refined window by window."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from shortviz.errors import NumericsError, PlanError, Stopped
from shortviz.measure.logits import LogitHead, open_head
from shortviz.measure.losses import (
    WindowScore,
    check_windows,
    compare_window,
    score_base,
    score_of_windows,
    score_window,
)
from shortviz.measure.processes import ALONE, Ranks
from shortviz.measure.replay import Replay, TiledHead, find_tail, is_tileable, record
from shortviz.model.delta import checkpoint_key, load_checkpoint, save_checkpoint
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.progress import NO_WATCH, Progress, Watch
from shortviz.records.json import Floats
from shortviz.records.measured import BlockLosses
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


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenWindow:
    """The uncut model on one window, ready to tell what it loses without any block."""

    base: WindowScore
    losses: Callable[[Sequence[Block], Watch], Measured]
    """NLL and KL without each block, NaN where it is illegal or overflows; raises Stopped on the way."""


def open_engine(handle: ModelHandle, tokens: Tokens, like: "Engine | None" = None) -> "Engine":
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
    blocks, losses = pruned.open(tokens).losses(fitting, NO_WATCH)
    legal = np.flatnonzero(np.isfinite(losses[0]))[:3]
    return [blocks[i] for i in legal], losses[:, legal]


def _agrees(engine: "ReplayEngine", tokens: Tokens, blocks: Sequence[Block], expected: Floats) -> bool:
    handle = engine.head.handle
    try:
        ordered, losses = engine.open(tokens).losses(blocks, NO_WATCH)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False  # layer arguments that do not fit: what the check is there to find out
    order = [blocks.index(block) for block in ordered]
    tolerance = TOLERANCE.get(handle.model.dtype, LOW_PRECISION)
    return bool(np.all(np.abs(losses - expected[:, order]) <= tolerance))


@dataclass(frozen=True, kw_only=True, eq=False)
class ReplayEngine:
    """Suffixes replayed from the uncut model's boundaries."""

    head: LogitHead
    replay: Replay
    replayed: bool = True

    @torch.inference_mode()
    def open(self, tokens: Tokens) -> OpenWindow:
        """Run the uncut model on a window, shape (tokens,)."""
        base = score_window(self.head, tokens)
        ids = torch.tensor(tokens, device=self.head.handle.model.device)
        recording, tiles = record(self.head.handle, ids), TiledHead(handle=self.head.handle)
        target = tiles.target(recording.head_states[:-1], ids[1:])

        @torch.inference_mode()
        def losses(blocks: Sequence[Block], watch: Watch) -> Measured:
            ordered, states = self.replay.final_states(recording, blocks, watch)
            return ordered, torch.stack(tiles.losses(states[:, :-1], target)).cpu().numpy()

        return OpenWindow(base=base, losses=losses)


@dataclass(frozen=True, kw_only=True, eq=False)
class PrunedEngine:
    """Every pruned model is built and run."""

    handle: ModelHandle
    head: LogitHead
    replayed: bool = False

    def open(self, tokens: Tokens) -> OpenWindow:
        """Run the uncut model on a window, shape (tokens,)."""
        uncut = score_base(self.head, tokens)

        def losses(blocks: Sequence[Block], watch: Watch) -> Measured:
            found = np.full((2, len(blocks)), np.nan)
            for index, block in enumerate(blocks):
                watch.check("Stopped while pruned models were run.")
                watch.tell("replay", done=index, total=len(blocks), unit="blocks")
                with suppress(PlanError, NumericsError):
                    pruned = prune(self.handle, PrunePlan.of_blocks(self.handle.info.num_layers, block))
                    score, change = compare_window(open_head(pruned, torch.tensor(tokens)), tokens, uncut)
                    found[:, index] = score.nll, change.kl
            return list(blocks), found

        return OpenWindow(base=uncut.score, losses=losses)


Engine = ReplayEngine | PrunedEngine

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
    key = checkpoint_key("losses", handle, windows.info.fingerprint, windows.tokens.shape, coarse_tokens, GROUP_TOKENS)
    ranks = ranks or ALONE
    checkpoint, mine = ranks.checkpoint(checkpoint), ranks.mine(len(passes))
    state = _resume(checkpoint, key, handle.info.num_layers, groups, mine)
    began, saved, before = time.monotonic(), time.monotonic(), state.seconds
    engine = open_engine(handle, windows.tokens[0])

    def record() -> BlockLosses:
        return _record(handle, windows, passes, state, replayed=engine.replayed)

    for index, one in enumerate(passes):
        opened: OpenWindow | None = None
        while (group := _next_group(groups[index], state.done[index], priority)) is not None and not watch.stopped:
            stage = "first look" if one.coarse else "map"
            counted = [i for i in mine if passes[i].coarse] if one.coarse else mine
            done, total = _cells_done(groups, state.done, counted), sum(len(g) for i in counted for g in groups[i])
            within = partial(_within, stage, done, len(groups[index][group]), total, one.name)
            watch.tell(stage, done=done, total=total, unit="cells", detail=one.name)
            opened = opened or engine.open(one.tokens)
            try:
                blocks, (nll, kl) = opened.losses(groups[index][group], watch.mapped(within))
            except Stopped:
                break
            state.sums.add(blocks, np.stack([nll, nll - opened.base.nll, kl]), coarse=one.coarse)
            state.base[:, index] = opened.base.nll, opened.base.seconds
            state.done[index, group] = 1
            state.seconds = before + time.monotonic() - began
            if checkpoint is not None and (state.finished or time.monotonic() - saved > CHECKPOINT_SECONDS):
                save_checkpoint(checkpoint, key, state.pack())
                saved = time.monotonic()
            done = _cells_done(groups, state.done, counted)
            watch.tell(stage, done=done, total=total, unit="cells", detail=one.name, snapshot=record)
    if ranks.size > 1:
        state = _added_up(ranks, state)
    if not np.any(state.done == 1):
        raise Stopped("Stopped before the first rows of the map were measured; there is nothing to keep.")
    return record()


Group = tuple[Block, ...]
"""Whole rows of the map, measured together."""


def _cells_done(groups: Sequence[Sequence[Group]], done: Floats, passes: Sequence[int]) -> int:
    return sum(len(group) for i in passes for j, group in enumerate(groups[i]) if done[i, j] == 1)


def _within(stage: str, done: int, cells: int, total: int, name: str, step: Progress) -> Progress:
    """Return the progress of a group as that of the map: its cells are ready together, and come nearer one by one."""
    near = int(cells * step.done / step.total) if step.total else 0
    return Progress(stage=stage, done=done + min(near, cells - 1), total=total, unit="cells", detail=name)


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


def _passes(windows: WindowSet, coarse_tokens: int) -> list[_Pass]:
    named = [f"window {i + 1} of {len(windows.tokens)}" for i in range(len(windows.tokens))]
    passes = [_Pass(name=name, tokens=row, coarse=False) for name, row in zip(named, windows.tokens, strict=True)]
    if 2 <= coarse_tokens < windows.tokens.shape[1]:
        first = windows.tokens[0, :coarse_tokens]
        passes.insert(0, _Pass(name=f"{coarse_tokens} tokens each", tokens=first, coarse=True))
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
    every = ranks.all(state)
    sums = every[0].sums
    for one in every[1:]:
        sums.merge(one.sums)
    done, base = (np.fmax.reduce([getattr(one, name) for one in every]) for name in ("done", "base"))
    return _State(sums=sums, done=done, base=base, seconds=max(one.seconds for one in every))


def _record(
    handle: ModelHandle, windows: WindowSet, passes: Sequence[_Pass], state: _State, *, replayed: bool
) -> BlockLosses:
    """Return the record; its base is the uncut model on the whole windows measured, or on the coarse piece so far."""
    count = state.sums.count.astype(np.int64)
    first_look = np.isfinite(state.sums.coarse[0]) & (count == 0)
    known = [
        (one.coarse, WindowScore(nll=nll, tokens=len(one.tokens) - 1, seconds=seconds))
        for one, (nll, seconds) in zip(passes, state.base.T.tolist(), strict=True)
        if np.isfinite(nll)
    ]
    base = [score for coarse, score in known if not coarse] or [score for _, score in known]
    return BlockLosses(
        num_layers=handle.info.num_layers,
        base=score_of_windows(handle, base),
        **state.sums.grids(),
        windows=count,
        tokens=np.where(first_look, len(passes[0].tokens) - 1, count * (windows.tokens.shape[1] - 1)),
        text=windows.info,
        replayed=replayed,
        complete=state.finished,
        seconds=state.seconds,
    )
