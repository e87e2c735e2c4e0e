"""evaluate_streamed: the losses of chosen cut models, all in one sweep over the layers, each weight read once.

A cut model's residual stream is the uncut one's up to its first removed layer. There it branches off, and goes through
the layers that the cut keeps while they are in memory for the uncut model anyway.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TypeVar

import torch
from torch import Tensor

from shortviz.errors import NumericsError, ResourceError
from shortviz.handle import ModelHandle
from shortviz.layer_calls import CallBook
from shortviz.logits import synchronise
from shortviz.losses import check_windows, evaluation_of
from shortviz.placement import free_memory
from shortviz.progress import NO_WATCH, Watch
from shortviz.ranks import Ranks
from shortviz.records import Evaluation, PrunePlan, Tokens, WindowSet
from shortviz.replay import LayerCall
from shortviz.state_store import widest
from shortviz.streamed_cut import cut_facts
from shortviz.streamed_head import open_streamed_head
from shortviz.streamed_model import StreamedModel, memory_limit
from shortviz.window_scores import WindowChange, WindowScore, compare_window, score_base
from shortviz.words import layers_text, size

T = TypeVar("T")


def evaluate_streamed(
    model: StreamedModel,
    windows: WindowSet,
    plans: Sequence[PrunePlan],
    *,
    ranks: Ranks | None = None,
    watch: Watch = NO_WATCH,
) -> list[Evaluation]:
    """Return what `evaluate` returns for each plan, with the uncut model as its base; each weight is read once.

    Without plans, the evaluation of the uncut model alone. The seconds of a score are those of its own layers and head,
    without reading. Memory above two layers: one residual stream of all windows, and one for each plan. Of several
    processes (`ranks`) each streams the model past its share of the windows; all return the whole.

    Raises PlanError where a plan does not fit or its config cannot be written, ModelError where a kept layer would be
    told other things in the cut model, ResourceError where the streams do not fit, Stopped, and what `evaluate` raises.
    """
    whole = ModelHandle(model=model.model, tokenizer=model.tokenizer, info=model.info, ref=model.ref)
    check_windows(whole, windows)
    mine = windows.tokens if ranks is None else windows.tokens[ranks.mine(len(windows.tokens))]
    given = mine if len(mine) else windows.tokens[:1]  # a process too many: it streams one, and hands in nothing
    state_bytes = _check_memory(model, given.shape, len(plans), 1 if ranks is None else ranks.local_size)
    with memory_limit(model, state_bytes, "give fewer cuts or windows at a time"), torch.inference_mode():
        rows = [torch.tensor(tokens, device=model.placement.device)[None] for tokens in given]
        model.load_non_layer_modules()
        cuts = [replace(whole, plan=plan, info=cut_facts(model, plan, rows[0])) for plan in plans]
        streams = _run_layers(model, rows, plans, watch)
        scores, changes = _scored(model, given, whole, cuts, streams, watch)
    if ranks is not None:
        every = ranks.all(([s[: len(mine)] for s in scores], [c[: len(mine)] for c in changes]))
        scores = [_in_turn([theirs[i] for theirs, _ in every]) for i in range(len(scores))]
        changes = [_in_turn([theirs[i] for _, theirs in every]) for i in range(len(changes))]
    if not cuts:
        return [evaluation_of(whole, windows, scores[0])]
    return [
        evaluation_of(cut, windows, own, base=whole, before=scores[0], changes=made)
        for cut, own, made in zip(cuts, scores[1:], changes, strict=True)
    ]


def _in_turn(shares: Sequence[Sequence[T]]) -> list[T]:
    """Return what the processes had of a list, each every size-th entry, in the order of the list."""
    return [one for turn in zip_longest(*shares) for one in turn if one is not None]


@dataclass(kw_only=True, slots=True, eq=False)
class _Stream:
    """One model's residual stream over all windows, as far as it has come."""

    removed: frozenset[int]
    states: list[Tensor] = field(default_factory=list)
    """(1, tokens, hidden) for each window; empty before a cut branches off."""
    seconds: list[float] = field(default_factory=list)
    """Of each window, in layers."""

    def go_through(
        self, index: int, layer: torch.nn.Module, calls: Sequence[Sequence[LayerCall]], watch: Watch
    ) -> None:
        """Run the layer on all windows; raises Stopped between them."""
        for window, call in enumerate(calls):
            watch.check(f"Stopped in layer {index} of {len(call)}; there is no result yet.")
            began = time.perf_counter()
            self.states[window] = call[index].run(layer, self.states[window])
            synchronise(self.states[window])
            self.seconds[window] += time.perf_counter() - began


def _run_layers(
    model: StreamedModel, rows: Sequence[Tensor], plans: Sequence[PrunePlan], watch: Watch
) -> list[_Stream]:
    """Return the streams at boundary L, the uncut model's first."""
    base = _Stream(removed=frozenset(), seconds=[0.0] * len(rows))
    cuts = [_Stream(removed=frozenset(plan.removed)) for plan in plans]
    book, calls = CallBook(), []
    for row in rows:
        hidden, made = model.calls(row)
        base.states.append(hidden.clone())
        calls.append(book.add(made))
    model.drop_non_layer_modules()
    count = model.info.num_layers
    for index, layer in model.layers_in_turn(range(count)):
        for cut in cuts:
            if not cut.states and index == min(cut.removed, default=0):
                cut.states, cut.seconds = [s.clone() for s in base.states], list(base.seconds)
        for stream in (base, *cuts):
            if stream.states and index not in stream.removed:
                stream.go_through(index, layer, calls, watch)
                _check_finite(model, stream, index)
        watch.tell("stream", done=index + 1, total=count, unit="layers")
    return [base, *cuts]


def _scored(
    model: StreamedModel,
    windows: Tokens,
    whole: ModelHandle,
    cuts: Sequence[ModelHandle],
    streams: Sequence[_Stream],
    watch: Watch,
) -> tuple[list[list[WindowScore]], list[list[WindowChange]]]:
    """Return the score of each stream, the uncut model's first, and the change of each cut, on every window."""
    model.load_non_layer_modules(head=True)
    head = open_streamed_head(model, whole, torch.tensor(windows[0]), streams[0].states[0])
    own: list[list[WindowScore]] = [[] for _ in streams]
    changes: list[list[WindowChange]] = [[] for _ in cuts]
    for window, tokens in enumerate(windows):
        ends = [replace(head, final=s.states[window], layer_seconds=s.seconds[window]) for s in streams]
        base = score_base(ends[0], tokens, watch)
        own[0].append(base.score)
        for cut, end in enumerate(ends[1:]):
            score, change = compare_window(end, tokens, base, watch)
            own[cut + 1].append(score)
            changes[cut].append(change)
    model.drop_non_layer_modules()
    return own, changes


def _check_memory(model: StreamedModel, windows: tuple[int, ...], plans: int, processes: int) -> int:
    """Return the bytes of the streams; raises ResourceError where they do not fit."""
    count, length = windows
    states = (plans + 1) * count * length * model.info.hidden_size * widest(model.state_dtypes).itemsize
    weights, where = max(model.working_bytes, model.ending_bytes), model.placement.device
    free = free_memory(where) // (processes if where.type == "cpu" else 1)
    if states + weights > free:
        raise ResourceError(
            f"The residual streams of {plans} cuts over {count} windows of {length} tokens need {size(states)} beside "
            f"{size(weights)} of weights, and {size(free)} is free; give fewer cuts or windows at a time."
        )
    return states


def _check_finite(model: StreamedModel, stream: _Stream, index: int) -> None:
    if not all(bool(torch.isfinite(state.sum()) or torch.isfinite(state).all()) for state in stream.states):
        cut = f" without layers {layers_text(sorted(stream.removed))}" if stream.removed else ""
        raise NumericsError(
            f"Layer {index} of {model.info.id}{cut} gives NaN or Inf in {model.info.dtype}; check the weights, or load "
            "the model with dtype float32."
        )
