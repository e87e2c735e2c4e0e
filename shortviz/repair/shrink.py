"""Shrink: cut the layer that costs least, repair, measure again, and cut more, until few enough layers are left.

Greedy as in SLEB (arXiv 2402.09025), but every step measures the model as the repairs so far have left it.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shortviz.errors import PlanError, RunError, ShortvizError, Stopped, TextError
from shortviz.measure.logits import open_head
from shortviz.measure.losses import check_windows, score_window
from shortviz.measure.search import single_layer_losses
from shortviz.model.delta import load_treated, refuse_other_work, save_treated
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.progress import NO_WATCH, Progress, Watch
from shortviz.records.json import Floats, Many, Number, from_plain, plain
from shortviz.records.ledger import Treatment
from shortviz.records.plan import PrunePlan
from shortviz.records.sums import mean_and_stderr
from shortviz.records.text import TokenSet, WindowSet
from shortviz.repair.repair import Repaired, check_method, repair

_MEASURING = 0.5
"""Share of a step's progress that measuring takes; the rest is the repair."""


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
    check_layers(base.info.num_layers, to_layers)
    check_method(method)
    check_windows(base, windows)
    shrinking = _Shrinking(
        base=base,
        windows=windows,
        tokens=tokens,
        uncut=_nll(base, windows),
        method=method,
        batch_size=batch_size,
        total=base.info.num_layers - to_layers,
        checkpoint=checkpoint,
        watch=watch,
        handle=base,
    )
    shrinking.resume()
    shrinking.run()
    return shrinking.result()


def check_layers(num_layers: int, to_layers: int) -> None:
    """Raise PlanError where a model of so many layers cannot be shrunk to `to_layers`."""
    if not 1 <= to_layers < num_layers:
        raise PlanError(f"The model has {num_layers} layers and is to have {to_layers}; give 1 to {num_layers - 1}.")


@dataclass(kw_only=True, slots=True, eq=False)
class _Shrinking:
    """A shrinking as far as it has come."""

    base: ModelHandle
    windows: WindowSet
    tokens: TokenSet
    uncut: Floats
    """NLL of each window, uncut."""
    method: str
    batch_size: int
    total: int
    """Layers that are to go."""
    checkpoint: Path | None
    watch: Watch
    handle: ModelHandle
    steps: list[ShrinkStep] = field(default_factory=list)
    note: str = ""

    def result(self) -> Shrunk:
        """Return what is done by now."""
        return Shrunk(
            handle=self.handle,
            steps=tuple(self.steps),
            base_nll=float(self.uncut.mean()),
            complete=len(self.steps) == self.total,
            note=self.note,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What the shrinking is, by name: a checkpoint goes on only where all of it is the same."""
        return {
            "method": self.method,
            "batch size": self.batch_size,
            "text that layers are chosen on": self.windows.info.fingerprint,
            "text that repairs are fitted to": self.tokens.info.fingerprint,
        }

    def resume(self) -> None:
        """Take up work that was cut short, where there is any; raises RunError where it is other work, or more."""
        found = load_treated(self.checkpoint, self.base) if self.checkpoint is not None else None
        if found is None:
            return
        self.handle, saved = found
        refuse_other_work(f"The shrinking in {self.checkpoint}", saved.get("work", {}), self.facts)
        self.steps = [from_plain(ShrinkStep, step) for step in saved["steps"]]
        if len(self.steps) > self.total:
            raise RunError(
                f"The shrinking in {self.checkpoint} has removed {len(self.steps)} layers already, and {self.total} "
                "are to go; ask for fewer layers, or delete the file to start again."
            )

    def run(self) -> None:
        """Make the steps left; what ends them early is told in the note, or raised where no step would be lost."""
        stopped = Stopped("Stopped before the first layer was removed; there is nothing to keep.")
        while len(self.steps) < self.total:
            try:
                found = self._step()
            except ShortvizError as error:
                if not self.steps:
                    raise (stopped if isinstance(error, Stopped) else error) from None
                self.note = "" if isinstance(error, Stopped) else str(error)
                return
            if found is None:
                left = "none of its layers" if not self.steps else "none of the layers that are left"
                self.note = f"The stock config of {self.base.info.architecture} can do without {left}."
                if not self.steps:
                    raise PlanError(self.note)
                return
            self.handle, step = found
            self.steps.append(step)
            if self.checkpoint is not None:
                facts = {"work": self.facts, "steps": plain(self.steps)}
                save_treated(self.checkpoint, self.handle, self.base, facts)
            self._tell(0.0, f"removed layer {step.layer}")

    def _tell(self, share: float, detail: str) -> None:
        """Tell how much of the step is done, and what."""
        done = len(self.steps) + share
        self.watch.tell("shrink", done=done, total=self.total, unit="layers", detail=detail, snapshot=self.result)

    def _step(self) -> tuple[ModelHandle, ShrinkStep] | None:
        """Return the model with one layer fewer, repaired; None where no layer can go. Raises Stopped.

        A repair that is refused leaves the step without one: later seams may be repaired again. Only too little text,
        which will not do for any, is told at once where no step is lost by it.
        """
        began, handle = time.perf_counter(), self.handle
        _, losses = single_layer_losses(
            handle, self.windows, self.watch, lambda share: self._tell(_MEASURING * share, "measuring layers")
        )
        nll = losses.mean(0)
        if np.isnan(nll).all():
            return None
        place = int(np.nanargmin(nll))
        cut = prune(handle, PrunePlan(num_layers=handle.info.num_layers, removed=(place,)))
        layer = place if handle.plan is None else handle.plan.kept[place]
        repaired, note = None, "Not repaired: no layer stands before the seam."
        try:
            repaired = self._repaired(cut, layer)
        except Stopped:
            raise
        except ShortvizError as refusal:
            if not self.steps and isinstance(refusal, TextError):
                raise
            note = f"Not repaired: {refusal}"
        result, treatment = cut, None
        if repaired is not None:
            result, note = repaired.handle, repaired.treatment.note
            if repaired.applied:
                treatment = repaired.treatment
        after = _nll(result, self.windows)
        increase, error = mean_and_stderr((after - self.uncut).tolist())
        step = ShrinkStep(
            layer=layer,
            removed=_plan(cut).removed,
            nll_cut=float(nll[place]),
            nll=float(after.mean()),
            increase=increase,
            increase_stderr=error,
            treatment=treatment,
            note=note,
            seconds=time.perf_counter() - began,
        )
        return result, step

    def _repaired(self, cut: ModelHandle, layer: int) -> Repaired | None:
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
            self._tell(_MEASURING + (1 - _MEASURING) * share, f"{what} the seam of layer {layer}")

        return repair(
            cut,
            self.base,
            self.tokens,
            method=self.method,
            blocks=(block,),
            batch_size=self.batch_size,
            watch=Watch(tell, self.watch.stop),
        )


def _plan(cut: ModelHandle) -> PrunePlan:
    assert cut.plan is not None, "something was removed"
    return cut.plan


def _nll(handle: ModelHandle, windows: WindowSet) -> Floats:
    head = open_head(handle, torch.tensor(windows.tokens[0]))
    return np.array([score_window(head, tokens).nll for tokens in windows.tokens])
