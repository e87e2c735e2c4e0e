"""The gradient of a text's loss at the head's input: next tokens, the uncut model's distribution, or some of each.

The logits of a long window are the largest tensor of a training. They are made for a few tokens at a time: each chunk's
gradient goes back to the head's input at once and the chunk is dropped, so that memory stays bounded and nothing is
computed twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shortviz.measure.logits import logit_cap, logit_factor
from shortviz.model.handle import ModelHandle

CHUNK_BYTES = 64 * 2**20
"""A float32 array of logits is never larger than this; at most six of them exist at a time."""


def head_logits(handle: ModelHandle, states: Tensor) -> Tensor:
    """Return a model's logits of what its head gets, (tokens, vocabulary), float32 or wider; gradients may flow."""
    model: Any = handle.model
    head = model.get_output_embeddings()
    with handle.lock:
        made: Tensor = head(states.to(head.weight.dtype)[None])[0] * logit_factor(model)
    cap = logit_cap(model)
    made = made if cap is None else cap * torch.tanh(made / cap)
    return made if made.dtype == torch.float64 else made.float()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadLoss:
    """(1 - mix) cross-entropy of the next tokens + mix T^2 KL(uncut || trained at temperature T), in nats.

    T^2 keeps the gradient's size as T grows (Hinton et al. 2015, arXiv 1503.02531, section 2.1).
    """

    logits: Callable[[Tensor], Tensor]
    """Of the model that is trained, from its states."""
    uncut_logits: Callable[[Tensor], Tensor] | None
    """Of the uncut model, from its own; None where its states are never given."""
    vocab_size: int
    mix: float = 0.5
    """Share of the uncut model's distribution, 0 to 1."""
    temperature: float = 1.0

    def gradient(self, states: Tensor, targets: Tensor, uncut: Tensor | None, share: float) -> tuple[float, Tensor]:
        """Return `share` of the mean loss over tokens and its gradient at the states, (tokens, hidden), chunk by chunk.

        `uncut` are the uncut model's states on the same tokens, if its distribution counts.
        """
        chunk = max(1, CHUNK_BYTES // (4 * self.vocab_size))
        gradient = torch.zeros_like(states)
        total = 0.0
        for low in range(0, len(states), chunk):
            part = slice(low, low + chunk)
            leaf = states[part].clone().requires_grad_()
            loss = self._sum(leaf, targets[part], None if uncut is None else uncut[part]) * (share / len(states))
            loss.backward()
            total += float(loss.detach())
            assert leaf.grad is not None
            gradient[part] = leaf.grad
        return total, gradient

    def _sum(self, states: Tensor, targets: Tensor, uncut: Tensor | None) -> Tensor:
        logits = self.logits(states)
        if uncut is None:
            return nn.functional.cross_entropy(logits, targets, reduction="sum")
        assert self.uncut_logits is not None
        with torch.no_grad():
            log_p = (self.uncut_logits(uncut).to(logits.device, logits.dtype) / self.temperature).log_softmax(-1)
        log_q = (logits / self.temperature).log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum()
        if self.mix == 1:
            return kl * self.temperature**2
        own = log_q if self.temperature == 1 else logits.log_softmax(-1)
        cross_entropy = -own.gather(-1, targets[:, None]).sum()
        return (1 - self.mix) * cross_entropy + self.mix * self.temperature**2 * kl
