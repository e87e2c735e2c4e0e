"""NLL and KL of many cut models on the same tokens: the head in tiles of the vocabulary, shared by all of them.

A tile of logits stays in the processor's cache, so that its exponentials cost little beside the matrix product. The KL
costs next to nothing: logits z' = W h' are linear in the final state, so the sum over the vocabulary of p z' is
(W^T p) . h', with W^T p made once a window. Only where the logits are bent (soft-capping) is the sum made term by term.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shortviz.handle import ModelHandle
from shortviz.logits import logit_cap, logit_factor, scale_logits

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
