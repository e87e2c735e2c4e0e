"""Suffix replay: the final states of many cut models from one forward pass of the uncut one.

Without block (start, n) the model runs layers 0 .. start-1 as before, so the residual stream at boundary start is
known; only layers start+n .. L-1 have to run from there. All blocks wanted walk through the layers together: those
with start+n = k join the batch before layer k. That halves the layer runs of the naive loop, and the batch is large.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shortviz.measure.logits import head_input, logit_cap, logit_factor, scale_logits
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import LayerCall, hidden_argument, hooked_layers, layer_stack, widest
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.plan import Block

STEP_TOKENS = 1024
"""Tokens that go through a layer at once; more falls out of the processor's cache."""


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


class _Stores:
    """The keys and values that each cut model's layers leave for later ones, where the family shares them.

    A cut model begins with the uncut one's: what is left before its block is the same, and a layer behind it that
    leaves its own writes them anew.
    """

    def __init__(self, recording: Recording, count: int) -> None:
        left = recording.calls[0].store or {}
        self._like = recording.calls[0].store
        self._left = {key: [t.repeat_interleave(count, 0) for t in tensors] for key, tensors in left.items()}

    @contextmanager
    def of(self, call: LayerCall, part: slice) -> Iterator[LayerCall]:
        """Yield the call with the store of some of the models, and keep what the layer leaves there."""
        if self._like is None:
            yield call
            return
        store = type(self._like)()
        given = {key: tuple(tensor[part] for tensor in tensors) for key, tensors in self._left.items()}
        store.update(given)
        yield call.storing(store)
        for key, tensors in store.items():
            if tensors is not given[key]:
                for mine, new in zip(self._left[key], tensors, strict=True):
                    mine[part] = new


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
    ) -> tuple[list[Block], Tensor]:
        """Return the blocks, in the order of their start+n, and what the head gets without each of them.

        The states have shape (blocks, tokens, hidden). Raises Stopped between layers.
        """
        ordered = sorted(blocks, key=lambda block: block.start + block.n)
        layers = layer_stack(self.handle.model).layers
        first, dtype = recording.boundaries[0], widest([hidden.dtype for hidden in recording.boundaries])
        states = torch.empty(len(blocks), *first.shape[1:], dtype=dtype, device=first.device)
        stores, joined = _Stores(recording, len(blocks)), 0
        ran, runs = 0, sum(len(layers) - block.start - block.n for block in blocks)
        for index in range(len(layers) + 1):
            while joined < len(ordered) and ordered[joined].start + ordered[joined].n == index:
                states[joined] = recording.boundaries[ordered[joined].start][0]
                joined += 1
            watch.check("Stopped while blocks were replayed.")
            watch.tell("replay", done=ran, total=runs, unit="layers")
            ran += joined
            if index < len(layers):
                self._advance(layers[index], recording.calls[index], states[:joined], stores)
        return ordered, self._through_tail(states).to(recording.head_states.dtype)

    def _advance(self, layer: nn.Module, call: LayerCall, states: Tensor, stores: "_Stores") -> None:
        """Replace states (blocks, tokens, hidden) by the layer's output, a few blocks at a time."""
        step = max(1, STEP_TOKENS // states.shape[1]) if self.stacked else 1
        for low in range(0, len(states), step):
            part = slice(low, min(low + step, len(states)))
            with self.handle.lock, stores.of(call, part) as given:
                states[part] = given.run(layer, states[part])

    def _through_tail(self, states: Tensor) -> Tensor:
        step = max(1, STEP_TOKENS // states.shape[1])
        parts = list(states.split(step))
        for module in self.tail:
            for index, part in enumerate(parts):
                with self.handle.lock:
                    parts[index] = module(part)
        return torch.cat(parts)


# NLL and KL of many cut models on the same tokens: the head in tiles of the vocabulary, shared by all of them.
#
# A tile of logits stays in the processor's cache, so that its exponentials cost little beside the matrix product. The
# KL costs next to nothing: logits z' = W h' are linear in the final state, so the sum over the vocabulary of p z' is
# (W^T p) . h', with W^T p made once a window. Only where the logits are bent (soft-capping) is the sum made term by
# term.

TILE = 1024
"""Vocabulary entries whose logits are made at once."""
ROWS = 1024
"""Tokens whose logits are made at once: with TILE, an array of 4 MB in float32 (8 MB in float64, once a window)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """What one window asks of every cut model: its next tokens, and the uncut model's distribution."""

    tokens: Tensor
    """The scored next tokens, (T,)."""
    states: Tensor
    """The uncut model's final states, (T, hidden)."""
    log_z: Tensor
    """Log of its softmax's denominator, (T,), float64."""
    entropy: Tensor
    """Of its distribution, (T,), float64."""
    mean_weight: Tensor
    """Sum over the vocabulary of p times the head's row, (T, hidden), float64; scaled like logits."""
    mean_bias: Tensor
    """The same of the head's bias, (T,), float64."""


def is_tileable(model: Any) -> bool:
    """Return whether the model's head is a plain linear layer."""
    return type(model.get_output_embeddings()) is nn.Linear


@dataclass(frozen=True, kw_only=True, eq=False)
class TiledHead:
    """The head of one model."""

    handle: ModelHandle

    @property
    def _linear(self) -> nn.Linear:
        linear: nn.Linear = self.handle.model.get_output_embeddings()
        return linear

    def target(self, states: Tensor, tokens: Tensor) -> Target:
        """Return what a window asks, from the uncut model's final states (T, hidden) and next tokens (T,)."""
        where = self._linear.weight.device  # of a spread model the head may be elsewhere than what stands before it
        states, tokens = states.to(where), tokens.to(where)
        log_z = self._log_z(states)
        size, hidden = states.shape
        mass, expected, mean_bias = (torch.zeros(size, dtype=torch.float64, device=states.device) for _ in range(3))
        mean_weight = torch.zeros(size, hidden, dtype=torch.float64, device=states.device)
        for low in range(0, self._linear.out_features, TILE):
            tile = slice(low, low + TILE)
            for at in range(0, size, ROWS):
                rows = slice(at, at + ROWS)
                logits = self._tile(states[rows], tile)
                p = (logits.double() - log_z[rows, None]).exp()
                mass[rows] += p.sum(-1)
                expected[rows] += (p * logits).sum(-1)
                mean_weight[rows] += p.to(logits.dtype) @ self._linear.weight[tile].to(logits.dtype)
                if self._linear.bias is not None:
                    mean_bias[rows] += p @ self._linear.bias[tile].double()
        factor = logit_factor(self.handle.model)
        return Target(
            tokens=tokens,
            states=states,
            log_z=log_z,
            entropy=log_z - expected / mass,
            mean_weight=mean_weight * (factor / mass[:, None]),
            mean_bias=mean_bias * (factor / mass),
        )

    def losses(self, states: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Return NLL and KL of cut models, (blocks,) each, means over tokens, from final states (blocks, T, hidden)."""
        states = states.to(target.states.device)
        blocks, size, hidden = states.shape
        capped = logit_cap(self.handle.model) is not None
        log_z, chosen, cross = torch.empty(3, blocks, size, dtype=torch.float64, device=states.device)
        for low in range(0, blocks, step := max(1, 4 * ROWS // size)):
            part, here = states[low : low + step], slice(low, low + step)
            log_z[here] = self._log_z(part.reshape(-1, hidden)).view(-1, size)
            chosen[here] = self._chosen(part, target.tokens)
            if capped:
                cross[here] = self._bent_cross(part, target)
            else:
                cross[here] = (part.double() * target.mean_weight).sum(-1) + target.mean_bias
        return (log_z - chosen).mean(-1), (log_z - cross - target.entropy).mean(-1)

    def _tile(self, states: Tensor, tile: slice) -> Tensor:
        """Return logits of some vocabulary entries, (rows, tile), a new tensor, float32 or wider."""
        linear = self._linear
        bias = None if linear.bias is None else linear.bias[tile]
        logits = scale_logits(self.handle.model, nn.functional.linear(states, linear.weight[tile], bias))
        return logits if logits.dtype == torch.float64 else logits.float()

    def _log_z(self, states: Tensor) -> Tensor:
        """Return the log of the softmax's denominator, (rows,), float64, of states (rows, hidden)."""
        rows = len(states)
        highest = torch.full((rows,), -torch.inf, dtype=torch.float64, device=states.device)
        total = torch.zeros_like(highest)
        for low in range(0, self._linear.out_features, TILE):
            for at in range(0, rows, ROWS):
                part = slice(at, at + ROWS)
                logits = self._tile(states[part], slice(low, low + TILE))
                new = torch.maximum(highest[part], logits.amax(-1).double())
                added = logits.sub_(new[:, None].to(logits.dtype)).exp_().sum(-1)
                total[part] = total[part] * (highest[part] - new).exp() + added
                highest[part] = new
        return total.log() + highest

    def _chosen(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of the next tokens, (blocks, T), float64, of states (blocks, T, hidden)."""
        linear = self._linear
        logits = torch.einsum("bth,th->bt", states.double(), linear.weight[tokens].double())
        if linear.bias is not None:
            logits += linear.bias[tokens].double()
        return scale_logits(self.handle.model, logits)

    def _bent_cross(self, states: Tensor, target: Target) -> Tensor:
        """Return the sum over the vocabulary of p z', (blocks, T), float64, term by term."""
        blocks, size, hidden = states.shape
        cross = torch.zeros(blocks, size, dtype=torch.float64, device=states.device)
        mass = torch.zeros(size, dtype=torch.float64, device=states.device)
        for low in range(0, self._linear.out_features, TILE):
            tile = slice(low, low + TILE)
            for at in range(0, size, step := max(1, ROWS // blocks)):
                rows = slice(at, at + step)
                before = self._tile(target.states[rows], tile)
                p = (before - target.log_z[rows, None].to(before.dtype)).exp_()
                mass[rows] += p.sum(-1).double()
                after = self._tile(states[:, rows].reshape(-1, hidden), tile).view(blocks, -1, p.shape[-1])
                cross[:, rows] += after.mul_(p).sum(-1).double()
        return cross / mass
