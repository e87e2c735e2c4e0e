"""heal: train a cut model, keep what is best on held-out text, and return it merged into new tensors."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from shortviz.errors import NumericsError, PlanError, ResourceError, ShortvizError, Stopped, TextError, is_out_of_memory
from shortviz.handle import ModelHandle
from shortviz.heal_adapter import Adapter, adapter_of
from shortviz.heal_checkpoint import HealState, load_state, save_state, training_facts
from shortviz.heal_data import batch_of, pack, refuse_too_little
from shortviz.heal_memory import training_bytes
from shortviz.heal_objectives import Objective, make_objective, seams_of
from shortviz.heal_settings import HealHistory, HealPoint, HealSettings
from shortviz.heal_student import Student, make_student, merge, set_training
from shortviz.heal_team import Team, team
from shortviz.ledger import Treatment
from shortviz.losses import check_windows, evaluate
from shortviz.records import OnProgress, Progress, Tokens, TokenSet, WindowSet
from shortviz.words import size

CHECKPOINT_SECONDS = 60.0
"""A kill costs at most so much of the training."""
CLIP = 1.0
"""Largest norm of an update's gradient."""
DIVERGED_NATS = 2.0
"""A held-out NLL so far above the best one means that the training has run away."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Healed:
    """A healed model and how it came about."""

    handle: ModelHandle
    """What was learned is merged into new tensors; everything untouched is shared with the cut model."""
    treatment: Treatment
    history: HealHistory
    adapter: Adapter | None = None
    """What was learned, alone; None for partial fine-tuning."""


def heal(
    cut: ModelHandle,
    tokens: TokenSet,
    settings: HealSettings,
    *,
    base: ModelHandle | None = None,
    heldout: WindowSet,
    checkpoint: Path | None = None,
    on_progress: OnProgress | None = None,
    stop: threading.Event | None = None,
) -> Healed:
    """Return the cut model after training on `tokens`; neither it nor `base`, the uncut model, is changed.

    The weights with the lowest NLL on `heldout` are kept: those of the cut model itself, where nothing was better. A
    training that was stopped or ran away keeps the best so far and says so in `history.note`. With `checkpoint` a
    training that was cut short, even by a kill, goes on from there to the same losses.

    Progress has the stage `heal`, in steps; its snapshot is a HealHistory.

    Raises:
        ShortvizError: the settings do not fit the model, or `base` is missing for an objective that needs it.
        TextError: there is too little text for the number of trained parameters, or it does not fit the model.
        NumericsError: the loss became NaN or ran away before anything was better than the cut.
        ResourceError: memory ran out, or a package is missing.
        RunError: the checkpoint belongs to another training (the differences are listed).
        Stopped: before the first step.
    """
    _check(cut, base, settings, heldout)
    windows = pack(tokens, settings.length, _separator(cut, tokens))
    with _own_random_numbers(settings.seed, 0, cut):
        student = make_student(cut, settings)
    refuse_too_little(tokens, windows, student.parameters)
    seams = seams_of(base, cut) if base is not None else ()
    row = torch.tensor(windows[0])
    with _memory_told(student, settings):
        objective = make_objective(settings, student.handle, base, seams, row)
        together = team(cut.model.device)
        training = _Training(
            student=student, objective=objective, settings=settings, windows=windows, heldout=heldout, team=together
        )
        saver = None
        if checkpoint is not None:
            facts = training_facts(cut, base, tokens, heldout, settings, together.size)
            training.resume(load_state(checkpoint, facts))
            saver = _saver(training, checkpoint, facts)
        training.run(on_progress, stop, saver)
    return training.healed(tokens)


def _check(cut: ModelHandle, base: ModelHandle | None, settings: HealSettings, heldout: WindowSet) -> None:
    check_windows(cut, heldout)
    context = cut.info.context_length
    if context is not None and settings.length > context:
        raise TextError(
            f"A training window of {settings.length} tokens is longer than the model's context of {context}; choose a "
            f"length of at most {context}."
        )
    if not settings.needs_base:
        return
    name = settings.objective
    if base is None:
        raise ShortvizError(f"The objective {name} learns from the uncut model, which is not given; choose next_token.")
    if base.info.vocab_size != cut.info.vocab_size:
        raise ShortvizError(
            f"The uncut model has {base.info.vocab_size} tokens and the cut one {cut.info.vocab_size}: the objective "
            f"{name} cannot compare them; choose next_token."
        )
    seams = seams_of(base, cut)
    if name == "seam" and not any(seam.boundary for seam in seams):
        where = "begins with the first layer" if seams else "is empty"
        raise PlanError(f"The cut {where}, so no layer before a seam could be trained; choose another objective.")


def _separator(handle: ModelHandle, tokens: TokenSet) -> list[int]:
    """Return what stands between two rows: a blank line, as in evaluation windows; nothing where a BOS opens each."""
    if "no BOS" not in tokens.info.bos:
        return []
    ids: list[int] = handle.tokenizer("\n\n", add_special_tokens=False, verbose=False)["input_ids"]
    return ids


@contextmanager
def _own_random_numbers(seed: int, step: int, handle: ModelHandle, rank: int = 0) -> Iterator[None]:
    """Let torch's generator be a function of (seed, step, process) for a while, and leave it as it was.

    So a training that goes on from a checkpoint draws the numbers that it would have drawn.
    """
    device = handle.model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + step) * 1009 + rank)
        yield


@contextmanager
def _memory_told(student: Student, settings: HealSettings) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"The memory of {student.handle.info.device} ran out: this training needs about "
            f"{size(training_bytes(student.handle.info, student.parameters, settings))}; choose a shorter length, a "
            "lower rank or fewer layers, or gradient checkpointing."
        ) from error


def learning_rate_at(settings: HealSettings, step: int) -> float:
    """Return the learning rate of the update that follows `step` ones: a linear warm-up, then half a cosine to 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    part = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * part))


class _RanAwayError(Exception):
    """The loss or the gradient of a step is no number, or the held-out NLL has run away."""


@dataclass(kw_only=True, eq=False)
class _Training:
    """One training under way."""

    student: Student
    objective: Objective
    settings: HealSettings
    windows: Tokens
    heldout: WindowSet
    team: Team
    step: int = 0
    points: list[HealPoint] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_step: int = 0
    note: str = ""
    rows: int = 0
    """Windows that are run at once: the batch size, less once memory ran out."""
    earlier_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.rows = self.settings.batch_size
        weights = [self.student.masters.get(name, weight) for name, weight in self.student.trained.items()]
        self.weights: list[Tensor] = weights
        self.optimizer = torch.optim.AdamW(weights, lr=self.settings.learning_rate, weight_decay=0.0)

    # Where it stands

    @property
    def seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started

    def history(self) -> HealHistory:
        measured = {point.step: point.heldout_nll for point in self.points if point.heldout_nll is not None}
        return HealHistory(
            points=tuple(self.points),
            steps=self.settings.steps,
            best_step=self.best_step,
            best_nll=measured.get(self.best_step),
            start_nll=measured.get(0),
            note=self.note,
        )

    def resume(self, state: HealState | None) -> None:
        if state is None:
            return
        self.step, self.points, self.best = state.step, list(state.history.points), dict(state.best)
        self.best_step, self.note = state.history.best_step, state.history.note
        self.earlier_seconds = state.history.points[-1].seconds
        self.student.load(state.weights)
        for name, weight in zip(self.student.trained, self.weights, strict=True):
            if name in state.moments:
                self.optimizer.state[weight] = {
                    kind: value if kind == "step" else value.to(weight.device)
                    for kind, value in state.moments[name].items()
                }

    def state(self) -> HealState:
        named = zip(self.student.trained, self.weights, strict=True)
        return HealState(
            step=self.step,
            weights=self.student.state(),
            best=self.best,
            moments={name: self.optimizer.state[w] for name, w in named if w in self.optimizer.state},
            history=self.history(),
        )

    # What it does

    def run(
        self, on_progress: OnProgress | None, stop: threading.Event | None, save: Callable[[bool], None] | None
    ) -> None:
        """Make the steps that are left."""
        if not self.points:
            self._measure(HealPoint(step=0, loss=None))
            self._tell(on_progress)
        while self.step < self.settings.steps and not self.note:
            if self.team.any(stop is not None and stop.is_set()):
                self._end_early(save)
                return
            try:
                self._advance()
            except _RanAwayError as error:
                self._ran_away(error)
            self._tell(on_progress)
            if save is not None:
                save(self.points[-1].heldout_nll is not None or bool(self.note))

    def _end_early(self, save: Callable[[bool], None] | None) -> None:
        if not self.step:
            raise Stopped("Stopped before the first step of the training; there is nothing to keep.")
        if save is not None:
            save(True)
        if self.points[-1].heldout_nll is None:
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
        took = time.perf_counter() - began
        done = self.settings.batch_size * self.settings.accumulate * self.team.size * self.settings.length
        point = HealPoint(
            step=self.step,
            loss=loss,
            learning_rate=rate,
            tokens_per_second=done / took,
            seconds=self.seconds,
        )
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
                with _own_random_numbers(self.settings.seed, self.step + 1, self.student.handle, self.team.rank):
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
        self.points.append(replace(point, heldout_nll=score.nll, heldout_stderr=stderr, seconds=self.seconds))
        if before is None or score.nll < before:
            self.best, self.best_step = self.student.state(), self.step
        elif score.nll > before + DIVERGED_NATS:
            raise _RanAwayError(
                f"The held-out NLL was {score.nll:.2f} at step {self.step}, after {before:.2f} at step {self.best_step}"
            )

    def _tell(self, on_progress: OnProgress | None) -> None:
        if on_progress is None or not self.team.is_main:
            return
        history = self.history()
        last = history.points[-1]
        loss = "" if last.loss is None else f"loss {last.loss:.3f}"
        held = "" if history.best_nll is None else f"held-out NLL {history.measured[-1].heldout_nll:.3f} nats"
        detail = ", ".join(part for part in (loss, held) if part)
        on_progress(
            Progress(
                stage="heal",
                done=self.step,
                total=self.settings.steps,
                unit="steps",
                detail=detail,
                snapshot=lambda: history,
            )
        )

    def healed(self, tokens: TokenSet) -> Healed:
        """Return the best weights, merged."""
        self.student.load(self.best)
        set_training(self.student, False)
        history = self.history()
        assert history.best_nll is not None
        assert history.start_nll is not None
        found = {
            "best_step": history.best_step,
            "heldout_nll": history.best_nll,
            "heldout_nll_before": history.start_nll,
            "heldout_text": self.heldout.info.source,
            "trained_parameters": self.student.parameters,
            "processes": self.team.size,
        }
        treatment = Treatment(
            kind="heal",
            method=self.settings.method,
            settings=asdict(self.settings) | {"alpha": self.settings.scale_alpha} | found,
            text=tokens.info,
            seconds=history.points[-1].seconds,
            note=" ".join(part for part in (history.note, self.student.note) if part),
        )
        merged = merge(self.student)
        cut = self.student.cut
        handle = replace(merged, treatments=(*cut.treatments, treatment))
        adapter = adapter_of(self.student, treatment) if self.student.adapter_config is not None else None
        return Healed(handle=handle, treatment=treatment, history=history, adapter=adapter)


def _saver(training: _Training, path: Path, facts: dict[str, object]) -> Callable[[bool], None]:
    """Return what saves the training to `path`: now where asked to, else once a minute."""
    last = time.monotonic()

    def save(now: bool) -> None:
        nonlocal last
        if training.team.is_main and (now or time.monotonic() - last >= CHECKPOINT_SECONDS):
            save_state(path, facts, training.state())
            last = time.monotonic()

    return save
