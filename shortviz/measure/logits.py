"""The way from final hidden states to logits: the model's own head, run over a few tokens at a time.

A whole (tokens, vocabulary) float32 array of one 512-token window is 100 MB for a 49k vocabulary and 500 MB for 256k.
So the decoder runs up to the head's input, and the head is applied to chunks, with the scalings that the family puts
behind it. Whether that gives the model's own logits is checked on a short input; where it does not, the whole forward
pass is used.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shortviz.model.handle import ModelHandle
from shortviz.model.layers import stoppable
from shortviz.progress import NO_WATCH, Watch

CHUNK_BYTES = 32 * 2**20
"""A float32 array of logits is never larger than this; at most three of them exist at a time."""
CHECKED_TOKENS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class LogitHead:
    """How a handle's logits are made: `split` is decoder then head in chunks; otherwise the whole forward pass."""

    handle: ModelHandle
    split: bool
    chunk: int
    """Tokens whose logits are made at once."""

    @torch.inference_mode()
    def states(self, tokens: Tensor, watch: Watch = NO_WATCH) -> tuple[Tensor, float]:
        """Return what the logits are made from, (tokens, hidden), and the seconds it took.

        Without `split` these are the logits themselves, (tokens, vocabulary), in the model's dtype. Raises Stopped at
        the next layer once `watch.stop` is set.
        """
        started = time.perf_counter()
        with self.handle.lock, stoppable(self.handle, watch):
            found = head_input(self.handle.model, tokens) if self.split else whole_logits(self.handle.model, tokens)
        synchronise(found)
        return found, time.perf_counter() - started

    @torch.inference_mode()
    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of a chunk of states, (tokens, vocabulary), a new tensor, float32 or wider."""
        model = self.handle.model
        with self.handle.lock:
            made = apply_head(model, states.to(model.device)) if self.split else states.to(model.device, copy=True)
        return made if made.dtype == torch.float64 else made.float()

    def timed_logits(self, states: Tensor) -> tuple[Tensor, float]:
        """Return the logits of a chunk of states and the seconds they took."""
        started = time.perf_counter()
        made = self.logits(states)
        synchronise(made)
        return made, time.perf_counter() - started


def open_head(handle: ModelHandle, tokens: Tensor) -> LogitHead:
    """Return how to make the logits of a handle, checked against its own forward pass on the first few tokens."""
    chunk = max(1, CHUNK_BYTES // (4 * handle.info.vocab_size))
    with handle.lock:
        return LogitHead(handle=handle, split=_head_is_exact(handle.model, tokens[:CHECKED_TOKENS]), chunk=chunk)


@torch.inference_mode()
def _head_is_exact(model: Any, tokens: Tensor) -> bool:
    if model.get_output_embeddings() is None:
        return False
    expected = whole_logits(model, tokens)
    try:
        made = apply_head(model, head_input(model, tokens))
    except _HeadNotReachedError:
        return False
    return same_logits(made, expected)


def same_logits(made: Tensor, expected: Tensor) -> bool:
    """Tell whether the head alone gives the model's own logits."""
    if made.shape != expected.shape:
        return False
    # The same operations on the same shapes: equal but for rounding. NaN passes; it is for the caller to find.
    made = made.to(expected.device)
    margin = 8 * torch.finfo(made.dtype).eps * expected.abs().max()
    return not bool(((made - expected).abs() > margin).any())


def apply_head(model: Any, states: Tensor) -> Tensor:
    """Return the model's own head, with the scalings behind it, on states (tokens, hidden): (tokens, vocabulary)."""
    head = model.get_output_embeddings()
    logits: Tensor = head(states.to(head.weight.dtype)[None])[0]
    return scale_logits(model, logits)


def scale_logits(model: Any, logits: Tensor) -> Tensor:
    """Do to the head's output, in place, what the model does with it."""
    if (factor := logit_factor(model)) != 1:
        logits.mul_(factor)
    cap = logit_cap(model)
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def logit_factor(model: Any) -> float:
    """Return what the model multiplies its head's output with.

    Known by config field name; a family that does something else fails the check of `open_head`.
    """
    config = model.config.get_text_config(decoder=True)
    given = [getattr(config, field, None) for field in ("logit_scale", "lm_head_multiplier")]
    divisor = getattr(config, "logits_scaling", None)
    return math.prod(f for f in given if isinstance(f, int | float)) / (1.0 if divisor is None else divisor)


def logit_cap(model: Any) -> float | None:
    """Return the bound that the model's logits are bent to by tanh; None in most families."""
    cap: float | None = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
    return cap


class _HeadReachedError(Exception):
    """Ends a forward pass once the head's input is known."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states: Tensor = states


class _HeadNotReachedError(Exception):
    """The forward pass ended without calling the head."""


@contextmanager
def _stop_at_head(model: Any) -> Iterator[None]:
    def raise_input(_module: Any, inputs: tuple[Tensor, ...]) -> None:
        raise _HeadReachedError(inputs[0])

    hook = model.get_output_embeddings().register_forward_pre_hook(raise_input)
    try:
        yield
    finally:
        hook.remove()


def head_input(model: Any, tokens: Tensor) -> Tensor:
    """Return what the model hands to its head for one row of tokens, (tokens, hidden); the head itself is not run."""
    return batch_head_input(model, tokens[None], use_cache=False)[0]


def batch_head_input(model: Any, tokens: Tensor, **call: Any) -> Tensor:
    """Return what the model hands to its head for rows of tokens, (rows, tokens, hidden); `call` goes to the model."""
    reached = reach_head(model, lambda: model(input_ids=tokens.to(model.device), **call))
    if reached is None:
        raise _HeadNotReachedError
    return reached


def reach_head(model: Any, run: Callable[[], object]) -> Tensor | None:
    """Return what the head is handed while `run` runs the model, which ends there; None where it is not called."""
    with _stop_at_head(model):
        try:
            run()
        except _HeadReachedError as reached:
            return reached.states
    return None


def whole_logits(model: Any, tokens: Tensor) -> Tensor:
    """Return the logits of one row of tokens by the model's plain forward pass, (tokens, vocabulary)."""
    logits: Tensor = model(input_ids=tokens.to(model.device)[None], use_cache=False).logits[0]
    return logits


def synchronise(tensor: Tensor) -> None:
    """Wait until an accelerator has really made the tensor, so that a clock may be read."""
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
