"""What a training learned, alone: a folder in peft's format that says which cut of which model it belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shortviz.heal_student import Student
from shortviz.ledger import Treatment


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """Low-rank weights and what they belong to."""

    config: Any
    """peft's LoraConfig."""
    tensors: Mapping[str, Tensor]
    """By peft's names, on the CPU."""
    treatment: Treatment


def adapter_of(student: Student, treatment: Treatment) -> Adapter:
    """Return the adapter that a student holds now."""
    tensors = {
        f"base_model.model.{name.replace('.default', '')}": weight.contiguous()
        for name, weight in student.state().items()
    }
    return Adapter(config=student.adapter_config, tensors=tensors, treatment=treatment)
