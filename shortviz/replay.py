"""Suffix replay: the final states of many cut models from one forward pass of the uncut one.

Without block (start, n) the model runs layers 0 .. start-1 as before, so the residual stream at boundary start is
known; only layers start+n .. L-1 have to run from there. All blocks wanted walk through the layers together: those
with start+n = k join the batch before layer k. That halves the layer runs of the naive loop, and the batch is large.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shortviz.architectures import layer_stack
from shortviz.capture import hidden_argument, hidden_output, hooked_layers
from shortviz.handle import ModelHandle
from shortviz.logits import head_input
from shortviz.progress import NO_WATCH, Watch
from shortviz.records import Block
from shortviz.state_store import widest

STEP_TOKENS = 1024
"""Tokens that go through a layer at once; more falls out of the processor's cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerCall:
    """What a layer was called with, but for the residual stream."""

    positional: bool
    """Whether the residual stream came first among the positional arguments."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "LayerCall":
        """Return what a layer was called with."""
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        return cls(positional=bool(args), args=args[1:], kwargs=rest)

    def run(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """Return the layer's output for another residual stream, (batch, tokens, hidden)."""
        if self.positional:
            return hidden_output(layer(hidden, *self.args, **self.kwargs))
        return hidden_output(layer(*self.args, hidden_states=hidden, **self.kwargs))


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """One forward pass of the uncut model over one row of tokens."""

    boundaries: list[Tensor]
    """The residual stream at boundary 0..L, each (1, tokens, hidden)."""
    calls: list[LayerCall]
    head_states: Tensor
    """What the head got, (tokens, hidden)."""


@torch.inference_mode()
def record(handle: ModelHandle, tokens: Tensor) -> Recording:
    """Return boundaries and layer calls of the uncut model on one row of tokens; the head is not run."""
    boundaries: list[Tensor] = []
    calls: list[LayerCall] = []

    def enters(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        boundaries.append(hidden_argument(index, args, kwargs).clone())
        calls.append(LayerCall.of(args, kwargs))

    layers = layer_stack(handle.model).layers
    with handle.lock, hooked_layers(layers, enters, lambda hidden: boundaries.append(hidden.clone())):
        states = head_input(handle.model, tokens)
    return Recording(boundaries=boundaries, calls=calls, head_states=states)


@torch.inference_mode()
def find_tail(handle: ModelHandle, tokens: Tensor) -> tuple[nn.Module, ...] | None:
    """Return the modules between boundary L and the head, in order (mostly the final norm alone).

    Found by hooks that record which modules turn the one into the other; None where something else happens.
    """
    model, stack = handle.model, layer_stack(handle.model)
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            seen.append((module, args[0].clone(), output.clone()))

    with handle.lock, ExitStack() as hooks:
        for module in _non_layer_modules(model, stack.path):
            hooks.callback(module.register_forward_hook(keep).remove)
        recording = record(handle, tokens)
    tail, current = [], recording.boundaries[-1]
    for module, entered, left in seen:
        if _equal(entered, current):
            tail.append(module)
            current = left
    # A model whose residual stream is wider than its head (Mamba in half precision) narrows it last of all.
    return tuple(tail) if _equal(current.to(recording.head_states.dtype), recording.head_states) else None


def _non_layer_modules(model: nn.Module, path: str) -> list[nn.Module]:
    """Return the modules next to the layer list and to each module that holds it, the head left out."""
    head = model.get_output_embeddings()  # type: ignore[operator]  # nn.Module says Tensor | Module of any attribute
    parts, found = path.split("."), []
    for depth in range(len(parts)):
        owner = model.get_submodule(".".join(parts[:depth]))
        found += [m for name, m in owner.named_children() if name != parts[depth] and m is not head]
    return found


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and torch.equal(a.reshape(-1), b.reshape(-1).to(a.device))


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """How to get final states of cut models without running them from the start."""

    handle: ModelHandle
    tail: tuple[nn.Module, ...]
    stacked: bool
    """Whether several cut models may share a layer call; the recorded arguments must broadcast over the batch."""

    @torch.inference_mode()
    def final_states(
        self, recording: Recording, blocks: Sequence[Block], watch: Watch = NO_WATCH
    ) -> tuple[list[Block], Tensor] | None:
        """Return the blocks, in the order of their start+n, and what the head gets without each of them.

        The states have shape (blocks, tokens, hidden). None when stopped on the way.
        """
        ordered = sorted(blocks, key=lambda block: block.start + block.n)
        layers = layer_stack(self.handle.model).layers
        first, dtype = recording.boundaries[0], widest([hidden.dtype for hidden in recording.boundaries])
        states = torch.empty(len(blocks), *first.shape[1:], dtype=dtype, device=first.device)
        joined = 0
        for index in range(len(layers) + 1):
            while joined < len(ordered) and ordered[joined].start + ordered[joined].n == index:
                states[joined] = recording.boundaries[ordered[joined].start][0]
                joined += 1
            if watch.stopped:
                return None
            if index < len(layers):
                self._advance(layers[index], recording.calls[index], states[:joined])
        return ordered, self._through_tail(states).to(recording.head_states.dtype)

    def _advance(self, layer: nn.Module, call: LayerCall, states: Tensor) -> None:
        """Replace states (blocks, tokens, hidden) by the layer's output, a few blocks at a time."""
        step = max(1, STEP_TOKENS // states.shape[1]) if self.stacked else 1
        for low in range(0, len(states), step):
            with self.handle.lock:
                states[low : low + step] = call.run(layer, states[low : low + step])

    def _through_tail(self, states: Tensor) -> Tensor:
        step = max(1, STEP_TOKENS // states.shape[1])
        parts = list(states.split(step))
        for module in self.tail:
            for index, part in enumerate(parts):
                with self.handle.lock:
                    parts[index] = module(part)
        return torch.cat(parts)
