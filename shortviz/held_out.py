"""The end loss of a candidate on held-out rows, from where its batches stand: what decides whether a repair is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from shortviz.errors import ModelError, NumericsError
from shortviz.handle import ModelHandle
from shortviz.logits import LogitHead, open_head
from shortviz.records import Floats, Tokens
from shortviz.replay import find_tail
from shortviz.seam_streams import PairedBatch
from shortviz.window_scores import score_window

_PROBE_TOKENS = 16
_TOLERANCE = 2e-3
"""In nats: what running layer by layer may differ from the model's own forward pass; half precision, fifty times."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EndLoss:
    """The way from a residual stream to the loss."""

    head: LogitHead
    tail: tuple[nn.Module, ...]
    judged: Callable[[int, int], None] | None = None
    """Told how many of how many rows were scored."""

    @torch.inference_mode()
    def nll(self, layers: nn.ModuleList, numbers: Sequence[int], batches: Sequence[PairedBatch], first: int) -> Floats:
        """Return the NLL of each row, mean over its scored tokens, by the layers from `first` on; streams stay."""
        found, total = [], sum(len(batch.ids) for batch in batches)
        for batch in batches:
            found.append(self._batch(layers, numbers, batch, first))
            if self.judged is not None:
                self.judged(sum(map(len, found)), total)
        return np.concatenate(found)

    def _batch(self, layers: nn.ModuleList, numbers: Sequence[int], batch: PairedBatch, first: int) -> Floats:
        state = batch.state.clone()
        for index in range(first, len(layers)):
            state = batch.calls[numbers[index]].run(layers[index], state)
        for module in self.tail:
            state = module(state)
        losses = [self._row(s[:r], i[:r]) for s, i, r in zip(state, batch.ids, batch.real.sum(1).tolist(), strict=True)]
        return np.array(losses)

    def _row(self, states: Tensor, ids: Tensor) -> float:
        total = 0.0
        for low in range(0, len(ids) - 1, self.head.chunk):
            targets = ids[low + 1 : low + 1 + self.head.chunk]
            logits = self.head.logits(states[low : low + len(targets)])
            chosen = logits.gather(-1, targets[:, None])[:, 0]
            total += float((logits.logsumexp(-1).double() - chosen.double()).sum())
        if not np.isfinite(total):
            raise NumericsError(
                "The loss on held-out text is NaN or Inf; check the weights, or load the model with dtype float32."
            )
        return total / (len(ids) - 1)


def open_end_loss(cut: ModelHandle, row: Tokens) -> EndLoss:
    """Return how to get the end loss of candidates of a cut model.

    Raises ModelError where the family's final states or head cannot be told apart from the rest.
    """
    tail = find_tail(cut, torch.tensor(row[:_PROBE_TOKENS]))
    head = open_head(cut, torch.tensor(row))
    if tail is None or not head.split:
        raise ModelError(
            f"{cut.info.architecture} does something between its layers and its head that repair does not know; heal "
            "the cut by training instead."
        )
    return EndLoss(head=head, tail=tail)


def check_replay(cut: ModelHandle, row: Tokens, replayed: float) -> None:
    """Raise ModelError where a row's loss by layers called one by one is not the cut model's own."""
    own = score_window(open_head(cut, torch.tensor(row)), row).nll
    tolerance = _TOLERANCE * (1 if torch.finfo(cut.model.dtype).eps < 1e-6 else 50)
    if not abs(own - replayed) <= tolerance:
        raise ModelError(
            f"The layers of {cut.info.architecture} do more when run together than one by one (loss {own:.4f} against "
            f"{replayed:.4f}), so a repair cannot be fitted; heal the cut by training instead."
        )
