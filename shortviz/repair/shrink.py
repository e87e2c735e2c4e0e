"""Shrink: cut the layer that costs least, repair, measure again, and cut more, until few enough layers are left.

Greedy as in SLEB (arXiv 2402.09025), but every step measures the model as the repairs so far have left it.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shortviz.errors import PlanError, RunError, ShortvizError, Stopped, TextError
from shortviz.measure.logits import open_head
from shortviz.measure.losses import check_windows, score_window
from shortviz.measure.search import single_layer_losses
from shortviz.model.delta import load_treated, save_treated
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.progress import NO_WATCH, Progress, Watch
from shortviz.records.json import Floats, Many, Number, from_plain, plain
from shortviz.records.ledger import Treatment
from shortviz.records.plan import PrunePlan
from shortviz.records.sums import mean_and_stderr
from shortviz.records.text import TokenSet, WindowSet
from shortviz.repair.repair import Repaired, check_method, repair

# The steps of a shrinking, and the file that it goes on from: the repaired weights so far, and how they came about.


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


_MEASURING = 0.5
"""Share of a step's progress that measuring takes; the rest is the repair."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shrunk:
    """A model after greedy cuts with a repair after each."""

    handle: ModelHandle
    steps: tuple[ShrinkStep, ...]
    base_nll: float
    """The uncut model on the same windows."""
    complete: bool
    """False: it ended before the wanted number of layers."""
    note: str = ""
    """Why it ended early, where that was no stop."""


def shrink(
    base: ModelHandle,
    windows: WindowSet,
    tokens: TokenSet,
    to_layers: int,
    *,
    method: str = "seam_refit",
    batch_size: int = 8,
    checkpoint: Path | None = None,
    watch: Watch = NO_WATCH,
) -> Shrunk:
    """Return the model shrunk to `to_layers` layers, one at a time, each cut repaired before the next is chosen.

    At each step the loss without every layer that is left is measured on all windows, the layer whose removal costs
    least goes, and the seam it leaves is repaired on `tokens` (other text than the windows). Layers that the stock
    config cannot do without are passed over. Where a seam cannot be repaired the step stands without, and its note says
    why. A stop, and a fault after the first step, keep what is done; progress counts layers and has snapshots. With
    `checkpoint`, work that was cut short, even by a kill, goes on after the last step that was done.

    Raises PlanError for a number of layers that is not below the model's, RunError for a checkpoint of other work,
    Stopped before the first step is done, and before that what `repair` and `evaluate` raise.
    """
    _check(base, windows, to_layers, method)
    total, uncut = base.info.num_layers - to_layers, _nll(base, windows)
    facts = shrink_facts(windows, tokens, method, batch_size)
    known = load_shrink(checkpoint, base, facts, total) if checkpoint is not None else None
    done = _Done(*(known or (base, [])))

    def partial() -> Shrunk:
        complete = len(done.steps) == total
        return Shrunk(
            handle=done.handle,
            steps=tuple(done.steps),
            base_nll=float(uncut.mean()),
            complete=complete,
            note=done.note,
        )

    def tell(share: float, detail: str) -> None:
        at = len(done.steps) + share
        watch.tell("shrink", done=at, total=total, unit="layers", detail=detail, snapshot=partial)

    job = _Job(
        base=base,
        windows=windows,
        tokens=tokens,
        uncut=uncut,
        method=method,
        batch_size=batch_size,
        tell=tell,
        watch=watch,
    )

    def keep() -> None:
        if checkpoint is not None:
            save_shrink(checkpoint, done.handle, base, facts, done.steps)

    _go_on(job, done, total, keep)
    return partial()


@dataclass(slots=True, eq=False)
class _Done:
    """A shrinking as far as it has come."""

    handle: ModelHandle
    steps: list[ShrinkStep]
    note: str = ""


def _go_on(job: "_Job", done: _Done, total: int, keep: Callable[[], None]) -> None:
    """Make the steps that are left; what ends them early is told in the note, or raised where no step would be lost."""
    stopped = Stopped("Stopped before the first layer was removed; there is nothing to keep.")
    while len(done.steps) < total:
        try:
            found = _step(job, done.handle, first=not done.steps)
        except ShortvizError as error:
            if not done.steps:
                raise (stopped if isinstance(error, Stopped) else error) from None
            done.note = "" if isinstance(error, Stopped) else str(error)
            return
        if found is None:
            left = "none of its layers" if not done.steps else "none of the layers that are left"
            done.note = f"The stock config of {job.base.info.architecture} can do without {left}."
            if not done.steps:
                raise PlanError(done.note)
            return
        done.handle, step = found
        done.steps.append(step)
        keep()
        job.tell(0.0, f"removed layer {step.layer}")


def check_layers(num_layers: int, to_layers: int) -> None:
    """Raise PlanError where a model of so many layers cannot be shrunk to `to_layers`."""
    if not 1 <= to_layers < num_layers:
        raise PlanError(f"The model has {num_layers} layers and is to have {to_layers}; give 1 to {num_layers - 1}.")


def _check(base: ModelHandle, windows: WindowSet, to_layers: int, method: str) -> None:
    now = base.info.num_layers
    check_layers(now, to_layers)
    check_method(method)
    check_windows(base, windows)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Job:
    base: ModelHandle
    windows: WindowSet
    tokens: TokenSet
    uncut: Floats
    """NLL of each window, uncut."""
    method: str
    batch_size: int
    tell: Callable[[float, str], None]
    """Told how much of the step is done, and what."""
    watch: Watch


def _step(job: _Job, handle: ModelHandle, *, first: bool) -> tuple[ModelHandle, ShrinkStep] | None:
    """Return the model with one layer fewer, repaired; None where no layer can go. Raises Stopped.

    A repair that is refused leaves the step without one: later seams may be repaired again. Only too little text, which
    will not do for any, is told at once where no step is lost by it.
    """
    began = time.perf_counter()
    measured = single_layer_losses(
        handle, job.windows, job.watch, lambda share: job.tell(_MEASURING * share, "measuring layers")
    )
    if measured is None:
        raise Stopped("Stopped while the layers were measured.")
    nll = measured[1].mean(0)
    if np.isnan(nll).all():
        return None
    place = int(np.nanargmin(nll))
    cut = prune(handle, PrunePlan(num_layers=handle.info.num_layers, removed=(place,)))
    layer = place if handle.plan is None else handle.plan.kept[place]
    repaired, refused = None, "Not repaired: no layer stands before the seam."
    try:
        repaired = _repaired(job, cut, layer)
    except Stopped:
        raise
    except ShortvizError as refusal:
        if first and isinstance(refusal, TextError):
            raise
        refused = f"Not repaired: {refusal}"
    result = cut if repaired is None else repaired.handle
    after = _nll(result, job.windows)
    increase, error = mean_and_stderr((after - job.uncut).tolist())
    step = ShrinkStep(
        layer=layer,
        removed=_plan(cut).removed,
        nll_cut=float(nll[place]),
        nll=float(after.mean()),
        increase=increase,
        increase_stderr=error,
        treatment=result.treatments[-1] if repaired is not None and repaired.applied else None,
        note=repaired.treatment.note if repaired is not None else refused,
        seconds=time.perf_counter() - began,
    )
    return result, step


def _repaired(job: _Job, cut: ModelHandle, layer: int) -> Repaired | None:
    """Return the cut repaired at the seam that removing this layer left; None where no layer stands before it."""
    block = next(block for block in _plan(cut).blocks if layer in block.layers)
    if block.start == 0:
        return None

    share = 0.0

    def tell(progress: Progress) -> None:
        nonlocal share
        if progress.stage == "repair":  # other stages are about what was repaired, and count for themselves
            share = progress.done / progress.total
        what = "repairing" if progress.stage == "repair" else "judging the repair of"
        job.tell(_MEASURING + (1 - _MEASURING) * share, f"{what} the seam of layer {layer}")

    return repair(
        cut,
        job.base,
        job.tokens,
        method=job.method,
        blocks=(block,),
        batch_size=job.batch_size,
        watch=Watch(tell, job.watch.stop),
    )


def _plan(cut: ModelHandle) -> PrunePlan:
    assert cut.plan is not None, "something was removed"
    return cut.plan


def _nll(handle: ModelHandle, windows: WindowSet) -> Floats:
    head = open_head(handle, torch.tensor(windows.tokens[0]))
    return np.array([score_window(head, tokens).nll for tokens in windows.tokens])
