"""evaluate_streamed: the losses of chosen cut models, all in one sweep over the layers, each weight read once.

A cut model's residual stream is the uncut one's up to its first removed layer. There it branches off, and goes through
the layers that the cut keeps while they are in memory for the uncut model anyway.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor

from shortviz.errors import ModelError, NumericsError, ResourceError
from shortviz.measure.logits import (
    CHECKED_TOKENS,
    CHUNK_BYTES,
    LogitHead,
    apply_head,
    reach_head,
    same_logits,
    synchronise,
)
from shortviz.measure.losses import WindowChange, WindowScore, check_windows, compare_window, evaluation_of, score_base
from shortviz.measure.processes import Ranks
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import LayerCall, widest
from shortviz.model.placement import free_memory
from shortviz.model.prune import pruned_info
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import layers_text, size
from shortviz.records.measured import Evaluation
from shortviz.records.model import ModelInfo
from shortviz.records.plan import PrunePlan
from shortviz.records.text import Tokens, WindowSet
from shortviz.streaming.calls import CallBook, difference, record_calls
from shortviz.streaming.model import StreamedModel, memory_limit


def cut_facts(model: StreamedModel, plan: PrunePlan, tokens: Tensor) -> ModelInfo:
    """Return the facts of the cut model, made on meta and given the embeddings of `model`, which must be loaded.

    Its layers have the weights of those that stay, so it gives what bypassing gives if they are also called with the
    same masks and positions; that is compared on `tokens`, (rows, tokens). Raises PlanError where the stock config
    cannot express the cut, ModelError, naming the argument, where a layer would be called with something else.
    """
    short, stack = model.without(plan)
    # The empty model is in torch's default dtype, and its tied weights are not one any more.
    parameters, num_bytes, _ = model.info.sizes(plan.removed)
    info = replace(
        pruned_info(model.info, short, plan),
        parameters=model.info.parameters - parameters,
        bytes=model.info.bytes - num_bytes,
    )
    _, before = record_calls(model.stack, tokens, in_tuple=model.in_tuple)
    _, after = record_calls(stack, tokens, in_tuple=model.in_tuple)
    for new, old in enumerate(plan.kept):
        odd = difference(before[old], after[new], rounding=True)
        if odd is not None:
            raise ModelError(
                f"Without layers {layers_text(plan.removed)}, layer {old} of {model.info.id} is given another "
                f"{odd} than with them, so its loss cannot be streamed; measure it in memory, or choose other layers."
            )
    return info


@dataclass(frozen=True, kw_only=True, eq=False)
class FinalState(LogitHead):
    """A way to logits whose decoder has run already."""

    streamed: StreamedModel
    final: Tensor
    """At boundary L, (1, tokens, hidden)."""
    layer_seconds: float = 0.0

    def states(self, tokens: Tensor, watch: Watch = NO_WATCH) -> tuple[Tensor, float]:
        """Return what the logits are made from, (tokens, hidden), and the seconds of the layers."""
        ids = tokens.to(self.final.device)[None]
        if not self.split:
            return whole_logits(self.streamed, ids, self.final), self.layer_seconds
        found = reach_head(self.streamed.model, lambda: self.streamed.finish(ids, self.final))
        assert found is not None, "it was reached when the head was checked"
        return found[0], self.layer_seconds

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of a chunk of states; raises NumericsError where one is NaN or Inf."""
        made = super().logits(states)
        if not bool(torch.isfinite(made).all()):
            raise NumericsError(
                f"The final norm or the head of {self.handle.info.id} gives NaN or Inf in {self.handle.info.dtype}; "
                "load the model with dtype float32."
            )
        return made


def open_streamed_head(model: StreamedModel, handle: ModelHandle, tokens: Tensor, final: Tensor) -> FinalState:
    """Return how logits are made, checked on the first tokens of a window against the model's own way to its end."""
    chunk = max(1, CHUNK_BYTES // (4 * handle.info.vocab_size))
    few, ids = final[:, :CHECKED_TOKENS], tokens[:CHECKED_TOKENS].to(final.device)[None]
    split = False
    if model.model.get_output_embeddings() is not None:
        reached = reach_head(model.model, lambda: model.finish(ids, few))
        split = reached is not None and same_logits(apply_head(model.model, reached[0]), whole_logits(model, ids, few))
    return FinalState(handle=handle, split=split, chunk=chunk, streamed=model, final=final)


def whole_logits(model: StreamedModel, tokens: Tensor, final: Tensor) -> Tensor:
    """Return the model's own logits, (tokens, vocabulary)."""
    logits: Tensor = model.finish(tokens, final).logits[0]
    return logits


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
    stores: list[Any] = field(default_factory=list)
    """For each window, what its layers leave for later ones (`LayerCall.store`); None where the family does not."""
    seconds: list[float] = field(default_factory=list)
    """Of each window, in layers."""

    def go_through(
        self, index: int, layer: torch.nn.Module, calls: Sequence[Sequence[LayerCall]], watch: Watch
    ) -> None:
        """Run the layer on all windows; raises Stopped between them."""
        for window, call in enumerate(calls):
            watch.check(f"Stopped in layer {index} of {len(call)}; there is no result yet.")
            began = time.perf_counter()
            self.states[window] = call[index].storing(self.stores[window]).run(layer, self.states[window])
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
        base.stores.append(made[0].store)
        calls.append(book.add(made))
    model.drop_non_layer_modules()
    count = model.info.num_layers
    for index, layer in model.layers_in_turn(range(count)):
        for cut in cuts:
            if not cut.states and index == min(cut.removed, default=0):
                cut.states, cut.seconds = [s.clone() for s in base.states], list(base.seconds)
                cut.stores = [copy.copy(store) for store in base.stores]
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
    token = model.info.hidden_size * widest(model.state_dtypes).itemsize + model.store_bytes
    states = (plans + 1) * count * length * token
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
