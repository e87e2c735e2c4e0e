"""The ledger of a cut while it grows: its models scored on the same text, with their continuations, and kept.

One ledger holds uncut, cut and treated models, all scored on the same windows and questions. It grows in the place's
run; what is known already is taken from the service. Work that was cut short goes on from where it is kept
(`unfinished`), whoever began it. Everything that needs torch is imported by the functions.
"""

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shortviz.errors import FieldError, Stopped, TextError
from shortviz.progress import Watch
from shortviz.records.heal import HealHistory
from shortviz.records.ledger import (
    TRAINED,
    Ledger,
    LedgerStep,
    Treatment,
    add_step,
    not_better,
    start_ledger,
    treated_name,
)
from shortviz.records.measured import Evaluation
from shortviz.records.model import ModelInfo, ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.records.run import Run
from shortviz.records.text import TaskScore, TextInfo, TextSpec, WindowSpec
from shortviz.runs.run import new_run, with_evaluation, with_ledger
from shortviz.service import kept, measure
from shortviz.service.place import Place, alone_at, unfinished
from shortviz.service.requests import (
    EvidenceRequest,
    HealRequest,
    RepairRequest,
    ShrinkRequest,
    check_device,
)
from shortviz.settings import settings
from shortviz.text.sources import read_rows

if TYPE_CHECKING:
    from shortviz.heal.heal import Healed
    from shortviz.model.handle import ModelHandle
    from shortviz.records.text import TokenSet, WindowSet
    from shortviz.repair.repair import Repaired
    from shortviz.repair.shrink import ShrinkStep
    from shortviz.service.service import Service

Treat = RepairRequest | ShrinkRequest | HealRequest | EvidenceRequest

METHODS = {
    "seam_refit": "Seam refit",
    TRAINED: "Seam refit, then trained",
    "linear_fold": "Linear fold",
    "scale": "Scale",
}
"""The repairs that the app offers, by the names of `shortviz.repair`."""
SHRINK_WINDOWS: Final = WindowSpec(window=256, windows=8)
"""What shrink chooses layers on of the text it fits to: few, for every layer is measured at every step."""
_NEEDS_ONE_DEVICE = {"repair": "A repair", "shrink": "Shrinking", "heal": "Healing", "evidence": "Evidence"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Treating:
    """A repair, a shrinking or a healing as it goes, and what it came to."""

    model: ModelRef
    """As it was loaded."""
    ledger: Ledger | None = None
    removed: tuple[int, ...] = ()
    """The cut: that of the ledger, and while it shrinks the layers that went so far."""
    methods: tuple[str, ...] = ()
    """What was done to the model that was made; none where nothing helped."""
    treatment: Treatment | None = None
    """What was done last, or tried."""
    applied: bool = False
    complete: bool = True
    """False: it was stopped, or nothing more could be removed."""
    history: HealHistory | None = None
    steps: "tuple[ShrinkStep, ...]" = ()
    base_nll: float = 0.0
    """shrink: the uncut model on the windows that layers are chosen on."""
    note: str = ""
    """Why nothing was kept, where nothing was, or why it ended early."""
    work: Path | None = None
    """Where it is kept until it is done, or written."""

    @property
    def verdict(self) -> str:
        """Why the model that was made is not better on the evaluation text; "" where it is, and where none was."""
        return verdict(self.ledger, self.methods)


def verdict(ledger: Ledger | None, methods: tuple[str, ...]) -> str:
    """Return why the model that was treated so is not better on its ledger's text, in a sentence; "" where it is."""
    step = ledger.treated(methods) if ledger is not None else None
    return not_better(ledger, step) if ledger is not None and step is not None else ""


def refuse_not_better(ledger: Ledger | None, methods: tuple[str, ...], anyway: bool) -> None:
    """Raise FieldError where a treated model is to be written that is not better on its ledger's text."""
    words = verdict(ledger, methods)
    if words and not anyway:
        raise FieldError("anyway", "to write it all the same", before=f"{words[:-1]}; nothing was written; give ")


def ledger_of(run: Run | None, removed: tuple[int, ...]) -> Ledger | None:
    """Return the run's newest ledger of a cut, whatever text it was scored on."""
    found = [ledger for ledger in run.ledgers if ledger.removed == removed] if run is not None else []
    return found[-1] if found else None


def known_ledger(
    service: "Service", ref: ModelRef | None, run: Run | None, removed: tuple[int, ...], spec: TextSpec
) -> Ledger | None:
    """Return the ledger of a cut as far as it is known: from the run, or its first two steps from an evaluation."""
    found = ledger_of(run, removed)
    if found is not None:
        return found
    evaluation = service.measured.get(measure.measured_key(ref, spec, removed)) if ref is not None else None
    if evaluation is None and run is not None:
        evaluation = run.evaluation_of(removed)
    if evaluation is None or evaluation.base is None or not evaluation.removed:
        return None
    return start_ledger(evaluation)


def paired(evaluation: Evaluation | None) -> bool:
    """Return whether an evaluation kept what paired errors of other steps are made of."""
    return (
        evaluation is not None
        and evaluation.complete
        and evaluation.base is not None
        and len(evaluation.score.window_nll) == len(evaluation.base.window_nll) == evaluation.score.windows
    )


def treated(
    service: "Service", ref: ModelRef | None, removed: tuple[int, ...], step: LedgerStep
) -> "ModelHandle | None":
    """Return the model of a treated step where it is still in memory."""
    return service.treated.get((ref, removed, step.methods)) if ref is not None else None


def text_key(ref: ModelRef, removed: tuple[int, ...], methods: tuple[str, ...], prompt: str) -> tuple[object, ...]:
    """Return where a continuation is kept; that of an untreated model is shared with the map's inspector."""
    return (ref, removed, methods, prompt) if methods else (ref, removed, prompt)


def cut_problem(model: ModelInfo, removed: tuple[int, ...]) -> str:
    """Return why a cut cannot be repaired or healed, in a sentence; "" where it can be tried."""
    if len(removed) >= model.num_layers:
        return f"The cut removes all {model.num_layers} layers; choose fewer."
    blocks = PrunePlan(num_layers=model.num_layers, removed=removed).blocks
    reasons = [reason for block in blocks if (reason := model.illegal_reason(block))]
    return f"This cut cannot be made: {reasons[0]}" if reasons else ""


def write(service: "Service", ref: ModelRef, name: str, model: "ModelHandle", prompt: str, watch: Watch) -> str:
    """Return a model's continuation, from memory where it is known; "" without a prompt or after a stop."""
    key = text_key(ref, model.removed, model.methods, prompt)
    known = service.continuations.get(key)
    if known is not None or not prompt.strip() or watch.stopped:
        return known or ""
    from shortviz.measure.generation import continue_text

    most = min(measure.NEW_TOKENS, settings().max_new_tokens)
    watch.tell(f"write, {name}", done=0, total=1, unit="steps")
    text = continue_text(model, prompt, max_new_tokens=most, watch=watch)
    return text if watch.stopped else service.continuations.put(key, text)


@contextmanager
def _of_evaluation() -> Iterator[None]:
    """Name the evaluation text's fields in a sentence about a text: the other one's have the plain names."""
    try:
        yield
    except FieldError as error:
        raise FieldError(f"eval_{error.field}", error.why, error.before) from error
    except TextError as error:
        raise TextError(re.sub(r"`(key|subset|split)`", r"`eval_\1`", str(error))) from error


class CutLedger:
    """One cut, its ledger as it grows, and the texts that its models are scored on, fitted to and trained on."""

    def __init__(
        self, request: Treat, service: "Service", place: Place, watch: Watch, *,
        fits: Callable[[int], object], scores: bool = True,
    ) -> None:  # fmt: skip
        """Read the texts and load the model; `fits` is called with its layers before the weights are read.

        One process of several that train together `scores`, and keeps what is made.
        """
        self.request, self.service, self.place, self.watch, self.scores = request, service, place, watch, scores
        self.shown = Treating(model=request.model)
        self._unfinished: list[Path] = []
        self._locks = ExitStack()
        # What is wrong with a text is told before minutes are spent on loading a model.
        watch.tell("read text", done=0, total=1, unit="steps")
        self.text = read_rows(request.text)
        with _of_evaluation():
            self.scored_on = measure.read_early(request.evaluation)
        if request.task is not None and scores:
            measure.rows_of(service, request.task, watch)
        check_device(request, _NEEDS_ONE_DEVICE[request.kind])
        self.base = service.models.load(request.model, watch, fits)
        place.check_model(self.base.info.id)
        self._windows: WindowSet | None = None

    @property
    def windows(self) -> "WindowSet":
        """What every model of the ledger is scored on."""
        asked = self.request
        if self._windows is None:
            with _of_evaluation():
                self._windows = measure.windows_of(self.service, asked.model, self.scored_on, self.base, asked.windows)
        return self._windows

    def named(self, words: str) -> None:
        """Say in the windows' name what they were used for: whoever reads the ledger is to know."""
        info = self.windows.info
        self._windows = replace(self.windows, info=replace(info, source=f"{info.source}, {words}"))

    def fit_rows(self, tokens: int, before: "TokenSet | None" = None) -> "TokenSet":
        """Return the beginning of the text in rows to fit on; with `before`, none that a training holds out."""
        from shortviz.text.tokens import fit_rows

        return fit_rows(self.text, self.base.tokenizer, tokens=tokens, before=before)

    def cut_out(self, removed: tuple[int, ...]) -> "ModelHandle":
        """Return the cut model; raises ResourceError where the disk has no room for its export."""
        from shortviz.model.prune import prune

        self.cut = prune(self.base, PrunePlan(num_layers=self.base.info.num_layers, removed=removed))
        self.shown = replace(self.shown, removed=self.cut.removed)
        self.check_room(self.cut)
        return self.cut

    def check_room(self, model: "ModelHandle", *, fewer_bytes: int = 0) -> None:
        """Raise ResourceError where an export finds no room on its disk: told before the work that it would lose.

        What comes after the cut leaves the size as it is; a model may still become smaller by so many bytes.
        """
        if self.place.export is None:
            return
        from shortviz.export.export import needed_bytes
        from shortviz.export.folder import check_space

        check_space(self.place.export.resolve(), needed_bytes(model, fewer_bytes=fewer_bytes))

    def open(self, text: TextInfo) -> None:
        """Score the uncut and the cut model, unless that is known with the loss of each window.

        A run that is new is one of `text`, which is fitted to.
        """
        if not self.scores:
            return
        asked, removed, fingerprint = self.request, self.cut.removed, self.windows.info.fingerprint
        key = measure.measured_key(asked.model, asked.evaluation, removed, asked.windows)
        found = self.service.measured.get(key)
        if found is None or not paired(found) or found.text.fingerprint != fingerprint:
            found = self._in_run(removed, fingerprint)
        if found is None:
            found = self._score(self.cut, "the cut")
            self.service.measured.put(key, found)
        found = replace(found, text=self.windows.info)
        ledger = start_ledger(
            found,
            uncut_task=self.accuracy(self.base, "uncut"),
            cut_task=self.accuracy(self.cut, "the cut"),
            prompt=asked.write,
            uncut_text=self._write("uncut", self.base),
            cut_text=self._write("cut", self.cut),
        )

        def change(old: Run | None) -> Run:
            run = old or new_run(self.base.info, text)
            # The app's inspector looks there; on the command line the ledger has it, and nothing twice.
            return with_evaluation(run, found) if self.place.keys else run

        self.keep(ledger, change)

    def _in_run(self, removed: tuple[int, ...], fingerprint: str) -> Evaluation | None:
        run = self.place.run
        steps = [step for ledger in (run.ledgers if run is not None else ()) for step in ledger.steps]
        found = [*(run.evaluations if run is not None else ()), *(s.evaluation for s in steps if s.name == "cut")]
        same = [e for e in found if (e.removed, e.text.fingerprint) == (removed, fingerprint) and paired(e)]
        return same[-1] if same else None

    def unfinished(self, kind: str, *facts: object) -> Path:
        """Return where this work is kept until it is done, by the model's own weights and what is done to it."""
        from shortviz.model.delta import weights_digest

        info = self.base.info
        path = unfinished(kind, info, info.device, weights_digest(self.base.model), *facts, suffix=".safetensors")
        if not self._locks.enter_context(alone_at(path)):  # who keeps it is at it: this work is on its own
            path = path.with_stem(f"{path.stem}-{uuid.uuid4().hex[:8]}")
        self._unfinished.append(path)
        self.shown = replace(self.shown, work=path)
        self.place.work = path
        return path

    def finish(self) -> None:
        """Have what was kept while this was unfinished removed, now or when it is written."""
        for path in self._unfinished:
            self.place.finished(path)
        self._locks.close()

    def repaired(self, rows: "TokenSet", method: str, batch_size: int = 8) -> "Repaired":
        """Return the repair of the cut: from memory or from work that was cut short where it is the very same."""
        from shortviz.model.delta import load_treated, save_treated
        from shortviz.repair.repair import Repaired, repair, rows_at_once

        removed, wanted = self.cut.removed, rows.info.fingerprint
        known = self.service.treated.get((self.request.model, removed, (method,)))
        if known is not None and _is_repair(known.treatments, wanted, rows_at_once(method, batch_size)):
            return Repaired(handle=known, treatment=known.treatments[0], applied=True)
        path = self.unfinished("repair", removed, wanted, method, batch_size)
        saved = load_treated(path, self.base) if self.scores else None
        if saved is not None:
            done = Repaired(handle=saved[0], treatment=saved[0].treatments[0], applied=True)
        else:
            done = repair(self.cut, self.base, rows, method=method, batch_size=batch_size, watch=self.watch)
            if done.applied and self.scores:
                save_treated(path, done.handle, self.base, {})
        return done

    def add(self, model: "ModelHandle", command: str, healed: "Healed | None" = None) -> None:
        """Score a treated model, let it write, and keep it and its step."""
        if not self.scores:
            return
        name, ref = treated_name(model.treatments), self.request.model
        evaluation = self._score(model, name)
        text, task = self._write(name, model), self.accuracy(model, name)
        problems = [kept.put_in_memory(self.service, ref, model.removed, self.base, model)]
        if self.place.keys:
            problems.append(kept.keep(self.service, self.place.keys[0], self.base, model, healed))
        elif healed is not None and healed.adapter is not None:
            self.service.adapters.put((ref, model.removed, model.methods), healed.adapter)
        self.say(*problems)
        assert self.shown.ledger is not None, "the ledger is opened first"
        ledger = add_step(
            self.shown.ledger, name, evaluation, model.treatments, task=task, continuation=text, command=command
        )  # fmt: skip
        self.shown = replace(self.shown, methods=model.methods)
        self.keep(ledger)

    def say(self, *words: str) -> None:
        """Add to what a person is told."""
        self.shown = replace(self.shown, note=" ".join(part for part in (self.shown.note, *words) if part))

    def _write(self, name: str, model: "ModelHandle") -> str:
        return write(self.service, self.request.model, name, model, self.request.write, self.watch)

    def accuracy(self, model: "ModelHandle", name: str) -> TaskScore | None:
        """Return how many of the chosen questions a model gets right; None without questions, or after a stop."""
        spec = self.request.task
        if spec is None or self.watch.stopped:
            return None
        return measure.model_score(
            self.service, self.request.model, self.place.run, model, spec,
            watch=self.watch.labelled(detail=name, snapshot=lambda: self.shown),
        )  # fmt: skip

    def _score(self, model: "ModelHandle", name: str) -> Evaluation:
        """Return the evaluation on all windows; what a stop has left behind is scored to the end."""
        from shortviz.measure.losses import evaluate

        heard = Watch(self.watch.on_progress) if self.watch.stopped else self.watch
        if self.watch.stopped:
            self.watch.say(f"Stopped: {name} is still scored to the end, so that what was done can be compared.")
        found = evaluate(
            model,
            self.windows,
            base=self.base,
            base_scores=measure.base_scores(self.service, self.request.model, self.base),
            watch=heard.labelled(detail=name, snapshot=lambda: self.shown),
        )
        if not found.complete:
            raise Stopped("Stopped before every window was scored; there is nothing to compare yet.")
        return found

    def keep(self, ledger: Ledger, change: Callable[[Run | None], Run] | None = None) -> None:
        """Put the ledger into the run, and show it as it then is."""

        def added(old: Run | None) -> Run:
            run = change(old) if change is not None else old
            assert run is not None, "the ledger was opened in it"
            return with_ledger(run, ledger)

        run = self.place.update(added)
        self.shown = replace(self.shown, ledger=ledger_of(run, ledger.removed))


def _is_repair(treatments: tuple[Treatment, ...], text: str, batch_size: int) -> bool:
    """Return whether a model was repaired once, on exactly these rows."""
    done = treatments[0] if len(treatments) == 1 else None
    return done is not None and (
        (done.text.fingerprint if done.text is not None else "", done.settings.get("batch_size")) == (text, batch_size)
    )
