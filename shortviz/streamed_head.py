"""The head of a streamed model: logits from the state at boundary L, a few tokens at a time where that is exact."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shortviz.errors import NumericsError
from shortviz.handle import ModelHandle
from shortviz.layer_calls import finish
from shortviz.logits import CHECKED_TOKENS, CHUNK_BYTES, LogitHead, apply_head, reach_head, same_logits
from shortviz.progress import NO_WATCH, Watch
from shortviz.streamed_model import StreamedModel


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
        end: Any = head_input if self.split else whole_logits
        return end(self.streamed, ids, self.final), self.layer_seconds

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
        reached = reach_head(model.model, lambda: finish(model.model, model.stack, ids, few, in_tuple=model.in_tuple))
        split = reached is not None and same_logits(apply_head(model.model, reached[0]), whole_logits(model, ids, few))
    return FinalState(handle=handle, split=split, chunk=chunk, streamed=model, final=final)


def head_input(model: StreamedModel, tokens: Tensor, final: Tensor) -> Tensor:
    """Return what the head gets, (tokens, hidden), from the state at boundary L, (1, tokens, hidden)."""
    found = reach_head(model.model, lambda: finish(model.model, model.stack, tokens, final, in_tuple=model.in_tuple))
    assert found is not None, "it was reached when the head was checked"
    return found[0]


def whole_logits(model: StreamedModel, tokens: Tensor, final: Tensor) -> Tensor:
    """Return the model's own logits, (tokens, vocabulary)."""
    logits: Tensor = finish(model.model, model.stack, tokens, final, in_tuple=model.in_tuple).logits[0]
    return logits
