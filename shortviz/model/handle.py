"""ModelHandle: a live model with its tokenizer, read-only and shared."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shortviz.records.ledger import Treatment
from shortviz.records.model import ModelInfo, ModelRef
from shortviz.records.plan import PrunePlan


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelHandle:
    """A causal language model in eval mode without gradients. Never change it: prune builds a new one.

    Hooks are global to a module, so every forward pass of `model` is made while holding `lock`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    ref: ModelRef
    folder: Path | None = None
    """The checkpoint that it was loaded from, whose files an export keeps; None for a model given as an object."""
    plan: PrunePlan | None = None
    """What was removed from the model that was loaded, in its layer numbers; None for the uncut model."""
    treatments: tuple[Treatment, ...] = ()
    """Repairs and healings that the model went through, in order."""
    lock: Any = field(default_factory=threading.RLock)
    """A threading.RLock."""

    @property
    def whole_plan(self) -> PrunePlan:
        """What was removed, also where that is nothing."""
        return self.plan or PrunePlan(num_layers=self.info.num_layers, removed=())

    @property
    def removed(self) -> tuple[int, ...]:
        """The layers that the model lacks; () of the uncut one."""
        return self.whole_plan.removed

    @property
    def methods(self) -> tuple[str, ...]:
        """What tells this model from others of its cut, e.g. `("seam_refit", "lora")`."""
        return tuple(treatment.method for treatment in self.treatments)
