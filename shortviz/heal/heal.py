"""heal: train a cut model, keep what is best on held-out text, and return it merged into new tensors."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from shortviz.errors import PlanError, ShortvizError, TextError, memory_told
from shortviz.heal.adapter import Adapter, adapter_of
from shortviz.heal.data import pack, refuse_too_little
from shortviz.heal.objectives import make_objective, seams_of
from shortviz.heal.student import Student, make_student, merge, set_training
from shortviz.heal.training import Training, own_random_numbers, team
from shortviz.measure.losses import check_windows
from shortviz.model.delta import model_facts
from shortviz.model.handle import ModelHandle
from shortviz.model.placement import refuse_spread
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import size
from shortviz.records.heal import HealHistory, HealSettings
from shortviz.records.ledger import Treatment
from shortviz.records.model import ModelInfo
from shortviz.records.text import TokenSet, WindowSet

_ACTIVATIONS = 24
"""Numbers kept for the backward pass, per token, layer and hidden unit: the residual stream, norms, attention, MLP."""
_LOGITS = 6
"""Arrays of logits of one chunk, 64 MB each."""


def training_bytes(model: ModelInfo, trained: int, settings: HealSettings) -> int:
    """Return the bytes that a training takes beside the frozen weights, which are there already.

    Trained weights with their gradient and two moments, and the best ones so far, in float32; activations of one
    batch, in the model's dtype; some logits.
    """
    width = 8 if model.dtype == "float64" else 4 if model.dtype == "float32" else 2
    tokens = settings.batch_size * settings.length
    per_layer = tokens * model.hidden_size * _ACTIVATIONS * width
    kept = per_layer * model.num_layers
    if settings.gradient_checkpointing:
        kept = per_layer + tokens * model.hidden_size * width * model.num_layers
    return 4 * 5 * trained + kept + _LOGITS * 64 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Healed:
    """A healed model and how it came about."""

    handle: ModelHandle
    """What was learned is merged into new tensors; everything untouched is shared with the cut model. The cut handle
    itself where nothing was learned that helps."""
    treatment: Treatment
    """What was done; its note says so where it is not applied, and no model then carries it."""
    history: HealHistory
    applied: bool
    """False: no step was better on held-out text than the model before the training, so nothing was changed."""
    adapter: Adapter | None = None
    """What was learned, alone; None for partial fine-tuning and where nothing was."""


def heal(
    cut: ModelHandle,
    tokens: TokenSet,
    settings: HealSettings,
    *,
    base: ModelHandle | None = None,
    heldout: WindowSet,
    checkpoint: Path | None = None,
    watch: Watch = NO_WATCH,
) -> Healed:
    """Return the cut model after training on `tokens`; neither it nor `base`, the uncut model, is changed.

    The weights with the lowest NLL on `heldout` are kept. Where nothing was better than the cut model, its own handle
    comes back, without a treatment. A training that was stopped or ran away keeps the best so far and says so in
    `history.note`. With `checkpoint` a training that was cut short, even by a kill, goes on from there to the same
    losses.

    Progress has the stage `heal`, in steps; its snapshot is a HealHistory. A text that is read again is told first.

    Raises:
        ShortvizError: the settings do not fit the model, or `base` is missing for an objective that needs it.
        TextError: there is too little text for the number of trained parameters, or it does not fit the model.
        NumericsError: the loss became NaN or ran away before anything was better than the cut.
        ResourceError: memory ran out, or a package is missing.
        RunError: the checkpoint belongs to another training (the differences are listed).
        Stopped: before the first step.
    """
    _check(cut, base, settings, heldout)
    windows = pack(tokens, settings.length)
    with own_random_numbers(settings.seed, 0, cut):
        student = make_student(cut, settings)
    refuse_too_little(tokens, windows, student.parameters)
    seams = seams_of(base, cut) if base is not None else ()
    row = torch.tensor(windows[0])
    with memory_told(lambda: _no_memory_left(student, settings)):
        objective = make_objective(settings, student.handle, base, seams, row)
        together = team(cut.model.device)
        training = Training(
            student=student,
            objective=objective,
            settings=settings,
            windows=windows,
            heldout=heldout,
            team=together,
            checkpoint=checkpoint,
            facts=_facts(cut, base, tokens, heldout, settings, together.size),
        )
        training.resume()
        if together.rank == 0 and (again := _read_again(training, settings.steps)):
            watch.say(again)
        training.run(watch)
    return _healed(training, tokens)


def _facts(
    cut: ModelHandle, base: ModelHandle | None, tokens: TokenSet, heldout: WindowSet, settings: HealSettings, world: int
) -> dict[str, Any]:
    """Return what a training is, by name: a checkpoint goes on only where all of it is the same."""
    *model, on_disk = model_facts(cut)
    treatments = [(each.kind, each.method, each.text.fingerprint if each.text else None) for each in cut.treatments]
    facts = {field.name.replace("_", " "): getattr(settings, field.name) for field in fields(settings)}
    facts |= {
        "model": model,
        "weights on disk": on_disk,
        "earlier treatments": treatments,
        "uncut model": model_facts(base) if base is not None and settings.needs_base else None,
        "training text": tokens.info.fingerprint,
        "held-out text": heldout.info.fingerprint,
        "processes": world,
    }
    found: dict[str, Any] = json.loads(json.dumps(facts))  # as it comes back from a file: tuples are lists
    return found


def _check(cut: ModelHandle, base: ModelHandle | None, settings: HealSettings, heldout: WindowSet) -> None:
    check_windows(cut, heldout)
    refuse_spread(cut, "Healing")
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


def _no_memory_left(student: Student, settings: HealSettings) -> str:
    return (
        f"The memory of {student.handle.info.device} ran out: this training needs about "
        f"{size(training_bytes(student.handle.info, student.parameters, settings))}; choose a shorter length, a "
        "lower rank or fewer layers, or gradient checkpointing."
    )


def _healed(training: Training, tokens: TokenSet) -> Healed:
    """Return the best weights, merged."""
    student, history, cut = training.student, training.history(), training.student.cut
    student.load(training.best)
    set_training(student, False)
    assert history.best_nll is not None
    assert history.start_nll is not None
    found = {
        "best_step": history.best_step,
        "heldout_nll": history.best_nll,
        "heldout_nll_before": history.start_nll,
        "heldout_text": training.heldout.info.source,
        "trained_parameters": student.parameters,
        "processes": training.team.size,
    }
    again = _read_again(training, training.step)
    treatment = Treatment(
        kind="heal",
        method=training.settings.method,
        settings=asdict(training.settings) | {"alpha": training.settings.scale_alpha} | found,
        text=tokens.info,
        seconds=history.points[-1].seconds,
        note=" ".join(filter(None, (_no_gain(history), history.note, student.note, again))),
    )
    if not history.best_step:
        return Healed(handle=cut, treatment=treatment, history=history, applied=False)
    merged = merge(student)
    handle = replace(merged, treatments=(*cut.treatments, treatment))
    adapter = adapter_of(student, treatment) if student.adapter_config is not None else None
    return Healed(handle=handle, treatment=treatment, history=history, applied=True, adapter=adapter)


def _read_again(training: Training, steps: int) -> str:
    """Return how often the steps read the text where that is more than once: what is read again is learned by heart."""
    text = training.windows.size
    times = steps * training.settings.tokens_per_step * training.team.size / text
    return f"The text's {text:,} tokens are read {times:.1f} times in {steps:,} steps." if times >= 1.05 else ""


def _no_gain(history: HealHistory) -> str:
    """Return the sentence for a training without a better step; "" for all others."""
    if history.best_step:
        return ""
    after = [point.heldout_nll for point in history.measured if point.step and point.heldout_nll is not None]
    best = f"; the lowest was {min(after):.4f}" if after else ""
    return (
        f"The training was not applied: no step was better on held-out text than the model before it, whose NLL is "
        f"{history.start_nll:.4f}{best}. Try a lower learning rate, or more text."
    )
