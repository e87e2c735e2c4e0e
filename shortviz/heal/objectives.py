"""What a training minimises: next tokens, the uncut model's distribution, its residual stream behind the cut."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shortviz.measure.gradients import HeadLoss, head_logits
from shortviz.measure.logits import batch_head_input, open_head
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import residual_boundaries
from shortviz.records.heal import HealSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Seam:
    """One place where layers were removed."""

    boundary: int
    """In the cut model: the boundary at which its layers meet."""
    teacher: int
    """The same place in the uncut model: the boundary behind the removed layers."""


def seams_of(base: ModelHandle, cut: ModelHandle) -> tuple[Seam, ...]:
    """Return the seams of a cut, in the layer numbers of `base` and of `cut` as they are."""
    before, after = base.whole_plan.kept, set(cut.whole_plan.kept)
    seams: list[Seam] = []
    kept = 0
    for index, layer in enumerate(before):
        if layer in after:
            kept += 1
        elif index + 1 == len(before) or before[index + 1] in after:
            seams.append(Seam(boundary=kept, teacher=index + 1))
    return tuple(seams)


class _FarEnoughError(Exception):
    """Ends a forward pass behind the last boundary that is wanted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What a forward pass gave."""

    states: Tensor | None
    """What the head gets, (rows, tokens, hidden); the logits themselves where the head is not split off."""
    boundaries: Mapping[int, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """Runs a model as far as an objective needs it."""

    handle: ModelHandle
    split: bool
    """The head can be run apart from the decoder (see `logits.open_head`)."""
    wanted: tuple[int, ...]
    """Boundaries to keep."""
    stop_early: bool
    """Nothing behind the last wanted boundary is needed."""

    def read(self, tokens: Tensor) -> Reading:
        """Return the states and boundaries of rows of tokens; gradients flow where they are enabled."""
        found: dict[int, Tensor] = {}
        last = max(self.wanted, default=-1)

        def keep(boundary: int, hidden: Tensor) -> None:
            if boundary in self.wanted:
                found[boundary] = hidden.clone()  # some families go on in place
            if self.stop_early and boundary == last:
                raise _FarEnoughError

        model: Any = self.handle.model
        states: Tensor | None = None
        with self.handle.lock, residual_boundaries(self.handle, keep), suppress(_FarEnoughError):
            if self.split:
                states = batch_head_input(model, tokens, use_cache=False)
            else:
                states = model(input_ids=tokens.to(model.device), use_cache=False).logits
        return Reading(states=states, boundaries=found)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of a chunk of states, (tokens, vocabulary), float32 or wider."""
        if self.split:
            return head_logits(self.handle, states)
        return states if states.dtype == torch.float64 else states.float()


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """What is minimised, with the models that it takes."""

    settings: HealSettings
    student: Reader
    teacher: Reader | None
    seams: tuple[Seam, ...]

    def backward(self, tokens: Tensor, share: float) -> float:
        """Add the gradients of rows of tokens to the trained weights; return `share` of their mean loss, in nats.

        `share` is the part that these rows are of all rows behind one update.
        """
        roots: list[Tensor] = []
        gradients: list[Tensor | None] = []
        total, teacher = 0.0, None
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            if self.teacher is not None:
                with torch.no_grad():
                    teacher = self.teacher.read(tokens)
            student = self.student.read(tokens)
            if student.states is not None:
                rows, length = tokens.shape
                scored = student.states[:, :-1].reshape(rows * (length - 1), -1)
                loss, gradient = self._head_gradient(scored.detach(), tokens, teacher, share)
                total += loss
                if scored.requires_grad:
                    roots.append(scored)
                    gradients.append(gradient)
            if self.seams:
                assert teacher is not None
                loss_at_seam = self._seam_loss(student, teacher) * share
                total += float(loss_at_seam.detach())
                if loss_at_seam.requires_grad:
                    roots.append(loss_at_seam)
                    gradients.append(None)
            torch.autograd.backward(roots, gradients)
        return total

    def _head_gradient(
        self, states: Tensor, tokens: Tensor, teacher: Reading | None, share: float
    ) -> tuple[float, Tensor]:
        """Return the loss of all next tokens and its gradient at the head's input."""
        before = None
        distils = self.settings.objective in ("distill", "mixed") and self.settings.mix > 0
        if distils and teacher is not None and teacher.states is not None:
            before = teacher.states[:, :-1].reshape(len(states), -1)
        loss = HeadLoss(
            logits=self.student.logits,
            uncut_logits=None if self.teacher is None else self.teacher.logits,
            vocab_size=self.student.handle.info.vocab_size,
            mix=self.settings.mix,
            temperature=self.settings.temperature,
        )
        return loss.gradient(states, tokens[:, 1:].reshape(-1).to(states.device), before, share)

    def _seam_loss(self, student: Reading, teacher: Reading) -> Tensor:
        """Return |x' - x|^2 / |x|^2, a mean over tokens and seams (Gromov et al., eq. 8, made relative).

        Relative for each token, because the state at position 0 is a hundred times as large as the others.
        """
        losses = []
        for seam in self.seams:
            x = teacher.boundaries[seam.teacher]
            y = student.boundaries[seam.boundary]
            wide = torch.float64 if y.dtype == torch.float64 else torch.float32
            x = x.to(y.device, wide)
            losses.append(((y.to(wide) - x).square().sum(-1) / x.square().sum(-1).clamp_min(1e-12)).mean())
        weight = self.settings.seam_weight if self.settings.objective == "mixed" else 1.0
        return torch.stack(losses).mean() * weight


def make_objective(
    settings: HealSettings, student: ModelHandle, base: ModelHandle | None, seams: tuple[Seam, ...], row: Tensor
) -> Objective:
    """Return the objective of these settings; `row` is some row of tokens, to check the heads on."""
    alone = settings.objective == "seam"
    seams = seams if alone or (settings.objective == "mixed" and settings.seam_weight > 0) else ()

    def reader(handle: ModelHandle, wanted: tuple[int, ...]) -> Reader:
        return Reader(handle=handle, split=open_head(handle, row).split, wanted=wanted, stop_early=alone)

    teacher = None
    if settings.needs_base:
        assert base is not None
        teacher = reader(base, tuple(seam.teacher for seam in seams))
    own = reader(student, tuple(seam.boundary for seam in seams))
    return Objective(settings=settings, student=own, teacher=teacher, seams=seams)
