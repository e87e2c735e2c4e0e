"""In which shapes layers are timed: those that each kind of work gives them, as far as that is worth the seconds."""

from dataclasses import dataclass, replace

import torch

from shortviz.architectures import LayerStack
from shortviz.fused_batches import FUSED_TOKENS, fuses, routes
from shortviz.heal_settings import PRESETS
from shortviz.model_info import weight_size
from shortviz.prediction_records import Work
from shortviz.replay import STEP_TOKENS

Shape = tuple[int, int]
"""Rows and their tokens."""

TIMED_TOKENS = 512
"""Tokens that go through a layer while it is timed."""
TIMED_PRODUCTS = 4e9
"""More tokens do, as many as there will be, up to so many (of all weights, times tokens): in small layers what is done
besides matrix products weighs, and it takes longer per token once a batch is larger than the processor's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """What goes through a layer at once."""

    batch: Shape
    """Of rows, measured or fitted to."""
    fused: Shape
    """Of rows while streaming, where small batches go together."""
    replayed: Shape
    """Of windows, behind several cuts, for the measured map."""
    trained: Shape
    """Of one step of healing."""

    @property
    def all(self) -> tuple[Shape, ...]:
        """Each shape once."""
        return tuple(dict.fromkeys((self.batch, self.fused, self.replayed, self.trained)))


def within_context(work: Work, context: int | None) -> Work:
    """Return the work with rows and windows no longer than the model's context."""
    if context is None:
        return work
    return replace(work, row_tokens=min(work.row_tokens, context), window=min(work.window, context))


def timed_shapes(stack: LayerStack, dtype: torch.dtype, work: Work, context: int | None) -> Shapes:
    """Return the shapes for some work, whose rows and windows are within the context."""
    most = max(TIMED_TOKENS, int(TIMED_PRODUCTS / max(weight_size(layer)[0] for layer in stack.layers)))
    rows = min(work.batch_size, work.rows)
    groups = 1
    if fuses(dtype) and not any(map(routes, stack.layers)):
        groups = max(FUSED_TOKENS // (rows * work.row_tokens), 1)
    healed = min(PRESETS["quick"].length, work.heal_tokens, context or work.heal_tokens)
    return Shapes(
        batch=_shape(most, rows, work.row_tokens),
        fused=_shape(most, min(groups * rows, work.rows), work.row_tokens),
        replayed=_shape(most, STEP_TOKENS // work.window, work.window),
        trained=_shape(most, work.heal_tokens // healed, healed),
    )


def _shape(most: int, rows: int, length: int) -> Shape:
    """Return as many rows of so many tokens as are worth timing, at least one row of at least two tokens."""
    length = max(min(length, most), 2)
    return max(min(rows, most // length), 1), length
