"""The steps of a training: batches, gradients, updates, looks at held-out text, checkpoints.

A checkpoint is one safetensors file, replaced atomically, tied to what is being trained. It holds the trained weights,
the best ones so far, and AdamW's moments. The schedule, the place in the text and all random numbers (order of the
text, dropout) follow from the settings and the step, so the step stands for them.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shortviz.errors import NumericsError, Stopped, is_out_of_memory
from shortviz.heal.data import batch_of
from shortviz.heal.objectives import Objective
from shortviz.heal.student import Student, set_training
from shortviz.measure.losses import evaluate
from shortviz.model.delta import read_tensors, refuse_other_work, write_tensors
from shortviz.model.handle import ModelHandle
from shortviz.progress import Watch
from shortviz.records.heal import HealHistory, HealPoint, HealSettings
from shortviz.records.json import from_plain, plain
from shortviz.records.text import Tokens, WindowSet


@dataclass(frozen=True, kw_only=True, slots=True)
class Team:
    """One process among those that train one model together (`accelerate launch`), each on its own windows.

    Only the trained weights' gradients travel, which for adapters is little; no wrapper around the model is needed.
    """

    rank: int = 0
    """0 is the one that writes files and reports."""
    size: int = 1
    device: torch.device = torch.device("cpu")
    """Where numbers that travel must be."""

    def mean(self, value: float) -> float:
        """Return the mean of a number over the processes."""
        number = torch.tensor(value, dtype=torch.float64, device=self.device)
        self.average((number,))
        return float(number)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over the processes into each tensor."""
        for tensor in tensors if self.size > 1 else ():
            torch.distributed.all_reduce(tensor)
            tensor.div_(self.size)


def team(device: torch.device) -> Team:
    """Return this process's place; alone unless torch.distributed was started before (`accelerate.PartialState`)."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Team()
    on = device if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    return Team(rank=torch.distributed.get_rank(), size=torch.distributed.get_world_size(), device=on)


CHECKPOINT_SECONDS = 60.0
"""A kill costs at most so much of the training."""
CLIP = 1.0
"""Largest norm of an update's gradient."""
DIVERGED_NATS = 2.0
"""A held-out NLL so far above the best one means that the training has run away."""


@contextmanager
def own_random_numbers(seed: int, step: int, handle: ModelHandle, rank: int = 0) -> Iterator[None]:
    """Let torch's generator be a function of (seed, step, process) for a while, and leave it as it was.

    So a training that goes on from a checkpoint draws the numbers that it would have drawn.
    """
    device = handle.model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + step) * 1009 + rank)
        yield


def learning_rate_at(settings: HealSettings, step: int) -> float:
    """Return the learning rate of the update that follows `step` ones: a linear warm-up, then half a cosine to 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    part = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * part))


class _RanAwayError(Exception):
    """The loss or the gradient of a step is no number, or the held-out NLL has run away."""


@dataclass(kw_only=True, eq=False)
class Training:
    """One training under way."""

    student: Student
    objective: Objective
    settings: HealSettings
    windows: Tokens
    heldout: WindowSet
    team: Team
    checkpoint: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the training is, by name: a checkpoint goes on only where all of it is the same."""
    step: int = 0
    points: list[HealPoint] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_step: int = 0
    note: str = ""
    rows: int = 0
    """Windows that are run at once: the batch size, less once memory ran out."""
    earlier_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    saved: float = field(default_factory=time.monotonic)
    """When a checkpoint was written last."""

    def __post_init__(self) -> None:
        self.rows = self.settings.batch_size
        weights = [self.student.masters.get(name, weight) for name, weight in self.student.trained.items()]
        self.weights: list[Tensor] = weights
        self.optimizer = torch.optim.AdamW(weights, lr=self.settings.learning_rate, weight_decay=0.0)

    # Where it stands

    @property
    def seconds(self) -> float:
        """Since the start, earlier sittings included."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def history(self) -> HealHistory:
        """Return how it went so far."""
        measured = {point.step: point.heldout_nll for point in self.points if point.heldout_nll is not None}
        return HealHistory(
            points=tuple(self.points),
            steps=self.settings.steps,
            best_step=self.best_step,
            best_nll=measured.get(self.best_step),
            start_nll=measured.get(0),
            note=self.note,
        )

    def resume(self) -> None:
        """Take up the training of the checkpoint, where there is one.

        Raises RunError where the file cannot be read, or belongs to another training: the differences are listed.
        """
        found = read_tensors(self.checkpoint, ("facts", "step", "history")) if self.checkpoint is not None else None
        if found is None:
            return
        tensors, saved = found
        refuse_other_work(f"The training in {self.checkpoint}", saved["facts"], self.facts)
        history = from_plain(HealHistory, saved["history"])
        self.step, self.points, self.best_step = int(saved["step"]), list(history.points), history.best_step
        self.note, self.earlier_seconds = history.note, history.points[-1].seconds
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            parts.setdefault(kind, {})[name] = value
        self.best = parts.pop("best", {})
        self.student.load(parts.pop("weights"))
        for name, weight in zip(self.student.trained, self.weights, strict=True):
            for kind in (kind for kind in parts if name in parts[kind]):
                value = parts[kind][name]
                self.optimizer.state[weight][kind] = value if kind == "step" else value.to(weight.device)

    def _save(self, now: bool) -> None:
        """Write the checkpoint: now where asked to, else once a minute."""
        due = now or time.monotonic() - self.saved >= CHECKPOINT_SECONDS
        if self.checkpoint is None or self.team.rank != 0 or not due:
            return
        tensors = {f"weights/{name}": value for name, value in self.student.state().items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        for name, weight in zip(self.student.trained, self.weights, strict=True):
            moments = self.optimizer.state.get(weight, {})  # AdamW's own: step, exp_avg, exp_avg_sq
            tensors |= {f"{kind}/{name}": value for kind, value in moments.items()}
        metadata = {"facts": self.facts, "step": self.step, "history": plain(self.history())}
        write_tensors(self.checkpoint, tensors, metadata)
        self.saved = time.monotonic()

    # What it does

    def run(self, watch: Watch) -> None:
        """Make the steps that are left."""
        if not self.points:
            self._measure(HealPoint(step=0, loss=None))
            self._tell(watch)
        while self.step < self.settings.steps and not self.note:
            if self.team.mean(float(watch.stopped)):  # in any process: all end together
                self._end_early()
                return
            try:
                self._advance()
            except _RanAwayError as error:
                self._ran_away(error)
            self._tell(watch)
            self._save(self.points[-1].heldout_nll is not None or bool(self.note))

    def _end_early(self) -> None:
        if not self.step:
            raise Stopped("Stopped before the first step of the training; there is nothing to keep.")
        self._save(True)
        if self.points[-1].heldout_nll is None:
            with suppress(_RanAwayError):  # the best so far is kept all the same
                self._measure(self.points.pop())
        self.note = (
            f"Stopped after {self.step} of {self.settings.steps} steps; those of step {self.best_step} are kept."
        )

    def _ran_away(self, error: _RanAwayError) -> None:
        if not self.best_step:
            raise NumericsError(
                f"{error} before anything was better than the cut; lower the learning rate "
                f"({self.settings.learning_rate:g}), or load the model with dtype float32."
            ) from None
        self.note = f"{error}; the weights of step {self.best_step} are kept."

    def _advance(self) -> None:
        began = time.perf_counter()
        rate = learning_rate_at(self.settings, self.step)
        loss = self._update(rate)
        self.step += 1
        speed = self.settings.tokens_per_step * self.team.size / (time.perf_counter() - began)
        point = HealPoint(step=self.step, loss=loss, learning_rate=rate, tokens_per_second=speed, seconds=self.seconds)
        if self.step % self.settings.eval_every == 0 or self.step == self.settings.steps:
            self._measure(point)
        else:
            self.points.append(point)

    def _update(self, rate: float) -> float:
        """Make one update; return the loss before it. Nothing changes where the loss or the gradient is no number."""
        each = self.settings.batch_size * self.settings.accumulate
        position = self.step * each * self.team.size + self.team.rank * each
        batch = torch.tensor(batch_of(self.windows, position, each, self.settings.seed))
        set_training(self.student, True)
        loss = self._gradients(batch.to(self.student.handle.model.device))
        for name, weight in self.student.trained.items():
            if name in self.student.masters and weight.grad is not None:
                self.student.masters[name].grad = weight.grad.float()
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        self.team.average(gradients)
        loss = self.team.mean(loss)
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights, CLIP))
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise _RanAwayError(f"The {what} became NaN or Inf at step {self.step + 1}")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            for name, master in self.student.masters.items():
                self.student.trained[name].copy_(master)
        return loss

    def _gradients(self, batch: Tensor) -> float:
        """Return the loss of a batch, its gradients left in the weights; fewer rows at once where memory is short."""
        while True:
            for weight in self.student.trained.values():
                weight.grad = None
            try:
                with own_random_numbers(self.settings.seed, self.step + 1, self.student.handle, self.team.rank):
                    return sum(self.objective.backward(part, len(part) / len(batch)) for part in batch.split(self.rows))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.rows == 1:
                    raise
            self.rows = self.rows // 2
            if batch.device.type == "cuda":
                torch.cuda.empty_cache()

    def _measure(self, point: HealPoint) -> None:
        """Add a point with its held-out NLL; keep the weights where they are the best so far."""
        set_training(self.student, False)
        try:
            score = evaluate(self.student.handle, self.heldout).score
        except NumericsError:
            self.points.append(point)
            if not self.step:
                raise
            raise _RanAwayError(f"The held-out loss became NaN or Inf at step {self.step}") from None
        stderr = None if math.isnan(score.nll_stderr) else score.nll_stderr
        before = self.history().best_nll
        nll = self.team.mean(score.nll)  # the same decisions in every process, whatever its rounding
        self.points.append(replace(point, heldout_nll=nll, heldout_stderr=stderr, seconds=self.seconds))
        if before is None or nll < before:
            self.best, self.best_step = self.student.state(), self.step
        elif nll > before + DIVERGED_NATS:
            raise _RanAwayError(
                f"The held-out NLL was {nll:.2f} at step {self.step}, after {before:.2f} at step {self.best_step}"
            )

    def _tell(self, watch: Watch) -> None:
        if self.team.rank != 0:
            return
        history = self.history()
        last = history.points[-1]
        loss = "" if last.loss is None else f"loss {last.loss:.3f}"
        held = "" if history.best_nll is None else f"held-out NLL {history.measured[-1].heldout_nll:.3f} nats"
        detail = ", ".join(part for part in (loss, held) if part)
        watch.tell(
            "heal", done=self.step, total=self.settings.steps, unit="steps", detail=detail, snapshot=lambda: history
        )
