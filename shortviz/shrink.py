"""Shrink: cut the layer that costs least, repair, measure again, and cut more, until few enough layers are left.

Greedy as in SLEB (arXiv 2402.09025), but every step measures the model as the repairs so far have left it.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from shortviz.errors import PlanError, Stopped
from shortviz.greedy import single_layer_losses
from shortviz.handle import ModelHandle
from shortviz.ledger import Treatment
from shortviz.logits import open_head
from shortviz.losses import check_windows
from shortviz.pruning import prune
from shortviz.records import Floats, OnProgress, Progress, PrunePlan, TokenSet, WindowSet
from shortviz.repair import Repaired, repair
from shortviz.sums import mean_and_stderr
from shortviz.window_scores import score_window

_MEASURING = 0.5
"""Share of a step's progress that measuring takes; the rest is the repair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShrinkStep:
    """One layer fewer."""

    layer: int
    """The layer removed, in the uncut model's numbers."""
    removed: tuple[int, ...]
    """All layers removed by now."""
    nll_cut: float
    """On the windows the layers are chosen on, before this step's repair, in nats per scored token."""
    nll: float
    """After it."""
    increase: float
    """NLL over the uncut model's."""
    increase_stderr: float
    """Paired, over windows; NaN with one window."""
    treatment: Treatment | None
    """The repair; None where it did not help or nothing could be refitted."""
    note: str
    """What was said of the repair."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shrunk:
    """A model after greedy cuts with a repair after each."""

    handle: ModelHandle
    steps: tuple[ShrinkStep, ...]
    base_nll: float
    """The uncut model on the same windows."""
    complete: bool
    """False: stopped before the wanted number of layers, or nothing more could be removed."""


def shrink(
    base: ModelHandle,
    windows: WindowSet,
    tokens: TokenSet,
    to_layers: int,
    *,
    method: str = "seam_refit",
    batch_size: int = 8,
    on_progress: OnProgress | None = None,
    stop: threading.Event | None = None,
) -> Shrunk:
    """Return the model shrunk to `to_layers` layers, one at a time, each cut repaired before the next is chosen.

    At each step the loss without every layer that is left is measured on all windows, the layer whose removal costs
    least goes, and the seam it leaves is repaired on `tokens` (other text than the windows). Layers that the stock
    config cannot do without are passed over. A stop keeps what is done; progress counts layers and has snapshots.

    Raises PlanError for a number of layers that is not below the model's, Stopped before the first step is done, and
    what `repair` and `evaluate` raise.
    """
    _check(base, windows, to_layers, method)
    uncut = _nll(base, windows)
    steps: list[ShrinkStep] = []
    handle, total = base, base.info.num_layers - to_layers

    def partial(complete: bool = False) -> Shrunk:
        return Shrunk(handle=handle, steps=tuple(steps), base_nll=float(uncut.mean()), complete=complete)

    def tell(done: float, detail: str) -> None:
        if on_progress is not None:
            told = Progress(
                stage="shrink", done=len(steps) + done, total=total, unit="layers", detail=detail, snapshot=partial
            )
            on_progress(told)

    job = _Job(
        base=base,
        windows=windows,
        tokens=tokens,
        uncut=uncut,
        method=method,
        batch_size=batch_size,
        tell=tell,
        stop=stop,
    )
    while len(steps) < total:
        try:
            found = _step(job, handle)
        except Stopped:
            break
        if found is None:
            break
        handle, step = found
        steps.append(step)
        tell(0.0, f"removed layer {step.layer}")
    if not steps and (stop is None or not stop.is_set()):
        raise PlanError(f"The stock config of {base.info.architecture} can do without none of its layers.")
    if not steps:
        raise Stopped("Stopped before the first layer was removed; there is nothing to keep.")
    return partial(complete=len(steps) == total)


def check_layers(num_layers: int, to_layers: int) -> None:
    """Raise PlanError where a model of so many layers cannot be shrunk to `to_layers`."""
    if not 1 <= to_layers < num_layers:
        raise PlanError(f"The model has {num_layers} layers and is to have {to_layers}; give 1 to {num_layers - 1}.")


def _check(base: ModelHandle, windows: WindowSet, to_layers: int, method: str) -> None:
    now = base.info.num_layers
    check_layers(now, to_layers)
    if method == "linear_replacement":
        raise PlanError("After a linear_replacement no layer more can be cut; choose linear_fold, or another method.")
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
    stop: threading.Event | None


def _step(job: _Job, handle: ModelHandle) -> tuple[ModelHandle, ShrinkStep] | None:
    """Return the model with one layer fewer, repaired; None where no layer can go. Raises Stopped."""
    began = time.perf_counter()
    measured = single_layer_losses(
        handle, job.windows, job.stop, lambda share: job.tell(_MEASURING * share, "measuring layers")
    )
    if measured is None:
        raise Stopped("Stopped while the layers were measured.")
    nll = measured[1].mean(0)
    if np.isnan(nll).all():
        return None
    place = int(np.nanargmin(nll))
    cut = prune(handle, PrunePlan(num_layers=handle.info.num_layers, removed=(place,)))
    layer = place if handle.plan is None else handle.plan.kept[place]
    repaired, refused = None, "No layer stands before the seam."
    try:
        repaired = _repaired(job, cut, layer)
    except PlanError as refusal:  # e.g. a scale where the last layer went: the next step may be repaired again
        refused = str(refusal)
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
        treatment=repaired.treatment if repaired is not None and repaired.applied else None,
        note=repaired.treatment.note if repaired is not None else refused,
        seconds=time.perf_counter() - began,
    )
    return result, step


def _repaired(job: _Job, cut: ModelHandle, layer: int) -> Repaired | None:
    """Return the cut repaired at the seam that removing this layer left; None where no layer stands before it."""
    block = next(block for block in _plan(cut).blocks if layer in block.layers)
    if block.start == 0:
        return None

    def tell(progress: Progress) -> None:
        share = progress.done / progress.total
        job.tell(_MEASURING + (1 - _MEASURING) * share, f"repairing the seam of layer {layer}")

    return repair(
        cut,
        job.base,
        job.tokens,
        method=job.method,
        blocks=(block,),
        batch_size=job.batch_size,
        on_progress=tell,
        stop=job.stop,
    )


def _plan(cut: ModelHandle) -> PrunePlan:
    assert cut.plan is not None, "something was removed"
    return cut.plan


def _nll(handle: ModelHandle, windows: WindowSet) -> Floats:
    head = open_head(handle, torch.tensor(windows.tokens[0]))
    return np.array([score_window(head, tokens).nll for tokens in windows.tokens])
