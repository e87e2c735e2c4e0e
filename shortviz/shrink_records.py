"""The steps of a shrinking, and the file that it goes on from: the repaired weights so far, and how they came about."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortviz.errors import RunError
from shortviz.handle import ModelHandle
from shortviz.ledger import Treatment
from shortviz.own_weights import load_treated, save_treated
from shortviz.record_json import Many, Number, from_plain, plain
from shortviz.records import TokenSet, WindowSet


@dataclass(frozen=True, kw_only=True, slots=True)
class ShrinkStep:
    """One layer fewer."""

    layer: int
    """The layer removed, in the uncut model's numbers."""
    removed: Many[int]
    """All layers removed by now."""
    nll_cut: float
    """On the windows the layers are chosen on, before this step's repair, in nats per scored token."""
    nll: float
    """After it."""
    increase: float
    """NLL over the uncut model's."""
    increase_stderr: Number
    """Paired, over windows; NaN with one window."""
    treatment: Treatment | None
    """The repair; None where it did not help or could not be made."""
    note: str
    """What was said of the repair."""
    seconds: float


def shrink_facts(windows: WindowSet, tokens: TokenSet, method: str, batch_size: int) -> dict[str, Any]:
    """Return what a shrinking is, by name; it goes on only where all of it is the same."""
    return {
        "method": method,
        "batch size": batch_size,
        "text that layers are chosen on": windows.info.fingerprint,
        "text that repairs are fitted to": tokens.info.fingerprint,
    }


def save_shrink(
    path: Path, handle: ModelHandle, base: ModelHandle, facts: Mapping[str, Any], steps: Sequence[ShrinkStep]
) -> None:
    """Write a shrinking as far as it has come; raises ResourceError where the disk will not take it."""
    save_treated(path, handle, base, {"work": facts, "steps": plain(steps)})


def load_shrink(
    path: Path, base: ModelHandle, facts: Mapping[str, Any], most: int
) -> tuple[ModelHandle, list[ShrinkStep]] | None:
    """Return the model and the steps of work that was cut short, None where there is no file.

    Raises RunError where the file belongs to other work (the differences are listed), or to more than `most` steps.
    """
    found = load_treated(path, base)
    if found is None:
        return None
    handle, saved = found
    work = saved.get("work", {})
    differs = [name for name in {**work, **facts} if work.get(name) != facts.get(name)]
    if differs:
        shown = "; ".join(f"{name} was {_short(work.get(name))} and is {_short(facts.get(name))}" for name in differs)
        raise RunError(
            f"The shrinking in {path} was begun otherwise: {shown}; give what it was begun with, or delete the file to "
            "start again."
        )
    steps = [from_plain(ShrinkStep, step) for step in saved["steps"]]
    if len(steps) > most:
        raise RunError(
            f"The shrinking in {path} has removed {len(steps)} layers already, and {most} are to go; ask for fewer "
            "layers, or delete the file to start again."
        )
    return handle, steps


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 20 else f"{text[:12]}..."
