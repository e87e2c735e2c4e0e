"""Checkpoints of a training: one safetensors file, replaced atomically, tied to what is being trained.

It holds the trained weights, the best ones so far, and AdamW's moments. The schedule, the place in the text and all
random numbers (order of the text, dropout) follow from the settings and the step, so the step stands for them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shortviz.errors import RunError
from shortviz.files import write_atomically
from shortviz.model.delta import model_facts
from shortviz.model.handle import ModelHandle
from shortviz.records.heal import HealHistory, HealSettings
from shortviz.records.json import from_plain, plain
from shortviz.records.ledger import Treatment
from shortviz.records.text import TokenSet, WindowSet


@dataclass(frozen=True, kw_only=True, eq=False)
class HealState:
    """A training, as far as it has come."""

    step: int
    weights: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    """AdamW's own state of each weight that has one: step, exp_avg, exp_avg_sq."""
    history: HealHistory


def training_facts(
    cut: ModelHandle, base: ModelHandle | None, tokens: TokenSet, heldout: WindowSet, settings: HealSettings, world: int
) -> dict[str, Any]:
    """Return what a training is, by name: a checkpoint goes on only where all of it is the same."""
    teacher = base if settings.needs_base else None
    facts = {field.name.replace("_", " "): getattr(settings, field.name) for field in fields(settings)}
    facts |= {
        "model": model_facts(cut)[:-1],
        "weights on disk": model_facts(cut)[-1],
        "earlier treatments": [_treatment(treatment) for treatment in cut.treatments],
        "uncut model": None if teacher is None else model_facts(teacher),
        "training text": tokens.info.fingerprint,
        "held-out text": heldout.info.fingerprint,
        "processes": world,
    }
    found: dict[str, Any] = json.loads(json.dumps(facts))  # as it comes back from a file: tuples are lists
    return found


def _treatment(treatment: Treatment) -> list[Any]:
    return [treatment.kind, treatment.method, treatment.text.fingerprint if treatment.text is not None else None]


def save_state(path: Path, facts: Mapping[str, Any], state: HealState) -> None:
    """Write a training; a kill at any moment leaves the old file or the new one.

    Raises ResourceError where the disk will not take it.
    """
    tensors = {f"weights/{name}": value for name, value in state.weights.items()}
    tensors |= {f"best/{name}": value for name, value in state.best.items()}
    tensors |= {f"{kind}/{name}": value for name, each in state.moments.items() for kind, value in each.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"facts": facts, "step": state.step, "history": plain(state.history)}
    data = save(tensors, {name: json.dumps(value) for name, value in metadata.items()})
    write_atomically(path, lambda file: file.write(data))


def load_state(path: Path, facts: Mapping[str, Any]) -> HealState | None:
    """Return the training saved under these facts, or None where there is no file.

    Raises RunError where the file cannot be read, or belongs to another training: the differences are listed.
    """
    if not path.exists():
        return None
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}}
    moments: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            history = from_plain(HealHistory, metadata["history"])
            saved, step = metadata["facts"], int(metadata["step"])
            for key in file.keys():  # noqa: SIM118  # not a mapping
                kind, _, name = key.partition("/")
                target = parts[kind] if kind in parts else moments.setdefault(name, {})
                target[name if kind in parts else kind] = file.get_tensor(key)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(f"The checkpoint {path} cannot be read ({error}); delete it to start again.") from error
    _refuse_other(path, saved, facts)
    return HealState(step=step, weights=parts["weights"], best=parts["best"], moments=moments, history=history)


def _refuse_other(path: Path, saved: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    names = [name for name in {**saved, **facts} if saved.get(name) != facts.get(name)]
    if not names:
        return
    shown = "; ".join(f"{name} was {_short(saved.get(name))} and is {_short(facts.get(name))}" for name in names)
    raise RunError(
        f"The training in {path} was begun otherwise: {shown}; give what it was begun with, or delete the file to "
        "start again."
    )


def _short(value: Any) -> str:
    text = "not given" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
