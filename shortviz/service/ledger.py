"""What is done after a cut: repaired, shrunk, healed, asked questions, brought back. Each adds to the cut's ledger.

One ledger holds uncut, cut and treated models, all scored on the same windows and questions. It grows in the place's
run; what is known already is taken from the service. Work that was cut short goes on from where it is kept
(`unfinished`), whoever began it. Everything that needs torch is imported by the functions.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shortviz.errors import ResourceError, RunError, Stopped
from shortviz.progress import Progress, Watch
from shortviz.records.formatting import layers_text
from shortviz.records.heal import HealHistory
from shortviz.records.ledger import Ledger, LedgerStep, Treatment, treated_name
from shortviz.records.ledger_steps import add_step, start_ledger, with_task_score
from shortviz.records.measured import Evaluation
from shortviz.records.model import ModelInfo, ModelRef, hub_name
from shortviz.records.plan import PrunePlan
from shortviz.records.run import Run
from shortviz.records.text import ALL_TOKENS, TaskScore, TextInfo, TextSpec, WindowSpec
from shortviz.runs.run import new_run, with_evaluation, with_ledger
from shortviz.service import kept, measure
from shortviz.service.place import Place, unfinished
from shortviz.service.requests import (
    FIT_TEXT,
    TRAINING_TEXT,
    AskRequest,
    BringBackRequest,
    ContinueRequest,
    HealRequest,
    RepairRequest,
    ShrinkRequest,
    check_device,
)
from shortviz.service.service import Service
from shortviz.service.spelling import to_command
from shortviz.settings import settings
from shortviz.text.sources import read_rows
from shortviz.text.tokens import DEFAULT_EVALUATION, FIT_LENGTH, FIT_TOKENS

if TYPE_CHECKING:
    from shortviz.heal.heal import Healed
    from shortviz.model.handle import ModelHandle
    from shortviz.records.text import TokenSet, WindowSet
    from shortviz.repair.repair import Repaired
    from shortviz.repair.shrink import ShrinkStep

Treat = RepairRequest | ShrinkRequest | HealRequest

METHODS = {"seam_refit": "Seam refit", "linear_fold": "Linear fold", "scale": "Scale"}
"""The repairs that the app offers, by the names of `shortviz.repair`."""
SHRINK_WINDOWS: Final = WindowSpec(window=256, windows=8)
"""What shrink chooses layers on of the text it fits to: few, for every layer is measured at every step."""
_NEEDS_ONE_DEVICE = {"repair": "A repair", "shrink": "Shrinking", "heal": "Healing"}


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


def ledger_of(run: Run | None, removed: tuple[int, ...]) -> Ledger | None:
    """Return the run's newest ledger of a cut, whatever text it was scored on."""
    found = [ledger for ledger in run.ledgers if ledger.removed == removed] if run is not None else []
    return found[-1] if found else None


def known_ledger(
    service: Service, ref: ModelRef | None, run: Run | None, removed: tuple[int, ...], spec: TextSpec
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


def treated(service: Service, ref: ModelRef | None, removed: tuple[int, ...], step: LedgerStep) -> "ModelHandle | None":
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


def write(
    service: Service, ref: ModelRef, name: str, model: "ModelHandle", methods: tuple[str, ...], prompt: str,
    watch: Watch,
) -> str:  # fmt: skip
    """Return a model's continuation, from memory where it is known; "" without a prompt or after a stop."""
    removed = model.plan.removed if model.plan is not None else ()
    key = text_key(ref, removed, methods, prompt)
    known = service.continuations.get(key)
    if known is not None or not prompt.strip() or watch.stopped:
        return known or ""
    from shortviz.measure.generation import continue_text

    most = min(measure.NEW_TOKENS, settings().max_new_tokens)
    watch.tell(f"write, {name}", done=0, total=1, unit="steps")
    text = continue_text(model, prompt, max_new_tokens=most, watch=watch)
    return text if watch.stopped else service.continuations.put(key, text)


class CutLedger:
    """One cut, its ledger as it grows, and the texts that its models are scored on, fitted to and trained on."""

    def __init__(
        self, request: Treat, service: Service, place: Place, watch: Watch, *,
        fits: Callable[[int], object], scores: bool = True,
    ) -> None:  # fmt: skip
        """Read the texts and load the model; `fits` is called with its layers before the weights are read.

        One process of several that train together `scores`, and keeps what is made.
        """
        self.request, self.service, self.place, self.watch, self.scores = request, service, place, watch, scores
        self.shown = Treating(model=request.model)
        self._unfinished: list[Path] = []
        # What is wrong with a text is told before minutes are spent on loading a model.
        watch.tell("read text", done=0, total=1, unit="steps")
        self.text = read_rows(request.text)
        measure.check_readable(request.evaluation)
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
            self._windows = measure.windows_of(self.service, asked.model, asked.evaluation, self.base, asked.windows)
        return self._windows

    def named(self, words: str) -> None:
        """Say in the windows' name what they were used for: whoever reads the ledger is to know."""
        info = self.windows.info
        self._windows = replace(self.windows, info=replace(info, source=f"{info.source}, {words}"))

    def fit_rows(self, tokens: int = FIT_TOKENS, before: "TokenSet | None" = None) -> "TokenSet":
        """Return the beginning of the text in rows to fit on; with `before`, none that a training holds out."""
        from shortviz.text.tokens import fit_rows

        spec = self.request.text
        return fit_rows(
            spec, self.base.tokenizer, tokens=tokens, length=_row_length(spec), before=before, text=self.text
        )  # fmt: skip

    def cut_out(self, removed: tuple[int, ...]) -> "ModelHandle":
        """Return the cut model; raises ResourceError where the disk has no room for its export."""
        from shortviz.model.prune import prune

        self.cut = prune(self.base, PrunePlan(num_layers=self.base.info.num_layers, removed=removed))
        self.shown = replace(self.shown, removed=_removed(self.cut))
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

        check_space(self.place.export.resolve(), needed_bytes(model) - fewer_bytes)

    def open(self, text: TextInfo) -> None:
        """Score the uncut and the cut model, unless that is known with the loss of each window.

        A run that is new is one of `text`, which is fitted to.
        """
        if not self.scores:
            return
        asked, removed, fingerprint = self.request, _removed(self.cut), self.windows.info.fingerprint
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
            uncut_task=self._accuracy(self.base, "uncut"),
            cut_task=self._accuracy(self.cut, "the cut"),
            prompt=asked.write,
            uncut_text=self._write("uncut", self.base, ()),
            cut_text=self._write("cut", self.cut, ()),
        )

        def change(old: Run | None) -> Run:
            run = old or new_run(self.base.info, text)
            # The app's inspector looks there; on the command line the ledger has it, and nothing twice.
            return with_evaluation(run, found) if self.place.keys else run

        self._keep(ledger, change)

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
        self._unfinished.append(path)
        self.shown = replace(self.shown, work=path)
        return path

    def finish(self) -> None:
        """Have what was kept while this was unfinished removed, now or when it is written."""
        for path in self._unfinished:
            self.place.finished(path)

    def repaired(self, rows: "TokenSet", method: str, batch_size: int = 8) -> "Repaired":
        """Return the repair of the cut: from memory or from work that was cut short where it is the very same."""
        from shortviz.model.delta import load_treated, save_treated
        from shortviz.repair.repair import Repaired, repair

        removed, wanted = _removed(self.cut), rows.info.fingerprint
        known = self.service.treated.get((self.request.model, removed, (method,)))
        if known is not None and _is_repair(known.treatments, wanted, batch_size):
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
        methods, name, ref = kept.methods_of(model), treated_name(model.treatments), self.request.model
        evaluation = self._score(model, name)
        text, task = self._write(name, model, methods), self._accuracy(model, name)
        problems = [kept.put_in_memory(self.service, ref, _removed(model), self.base, model)]
        if self.place.keys:
            problems.append(kept.keep(self.service, self.place.keys[0], self.base, model, healed))
        elif healed is not None and healed.adapter is not None:
            self.service.adapters.put((ref, _removed(model), methods), healed.adapter)
        self.say(*problems)
        assert self.shown.ledger is not None, "the ledger is opened first"
        ledger = add_step(
            self.shown.ledger, name, evaluation, model.treatments, task=task, continuation=text, command=command
        )  # fmt: skip
        self.shown = replace(self.shown, methods=methods)
        self._keep(ledger)

    def say(self, *words: str) -> None:
        """Add to what a person is told."""
        self.shown = replace(self.shown, note=" ".join(part for part in (self.shown.note, *words) if part))

    def _write(self, name: str, model: "ModelHandle", methods: tuple[str, ...]) -> str:
        return write(self.service, self.request.model, name, model, methods, self.request.write, self.watch)

    def _accuracy(self, model: "ModelHandle", name: str) -> TaskScore | None:
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

    def _keep(self, ledger: Ledger, change: Callable[[Run | None], Run] | None = None) -> None:
        """Put the ledger into the run, and show it as it then is."""

        def added(old: Run | None) -> Run:
            run = change(old) if change is not None else old
            assert run is not None, "the ledger was opened in it"
            return with_ledger(run, ledger)

        run = self.place.update(added)
        self.shown = replace(self.shown, ledger=ledger_of(run, ledger.removed))


def _removed(model: "ModelHandle") -> tuple[int, ...]:
    return model.plan.removed if model.plan is not None else ()


def _row_length(spec: TextSpec) -> int:
    return spec.max_length if spec.max_length < ALL_TOKENS else FIT_LENGTH


def _is_repair(treatments: tuple[Treatment, ...], text: str, batch_size: int) -> bool:
    """Return whether a model was repaired once, on exactly these rows."""
    done = treatments[0] if len(treatments) == 1 else None
    return done is not None and (
        (done.text.fingerprint if done.text is not None else "", done.settings.get("batch_size")) == (text, batch_size)
    )


def command_of(request: Treat, info: ModelInfo) -> str:
    """Return the command that makes the same weights again: without where files lie, and without pasted text.

    What a model is only scored on is left out, but for layers that are chosen on it; "" where that was pasted.
    """
    shown = info.id if hub_name(info) else Path(info.id).name
    same = replace(request, model=ModelRef(id=shown, revision=info.revision, dtype=info.dtype), task=None, write="")
    chooses = isinstance(request, ShrinkRequest) and not request.choose_on_text
    if chooses and request.evaluation.kind == "paste":
        return ""
    if not chooses:
        same = replace(same, evaluation=DEFAULT_EVALUATION, windows=WindowSpec())
    if request.text.kind == "paste":
        usual = TRAINING_TEXT if isinstance(request, HealRequest) else FIT_TEXT
        own = request.text
        same = replace(same, text=replace(usual, limit=own.limit, max_length=own.max_length, bos=own.bos))
    return to_command(same, share=True)


# Repair, shrink, heal.


def repair(request: RepairRequest, service: Service, place: Place, watch: Watch) -> Treating:
    """Repair a cut in closed form and score it; where the repair does not help, the cut stays as it is."""
    from shortviz.repair.repair import check_method

    check_method(request.method)
    work = CutLedger(request, service, place, watch, fits=request.removal.of)
    rows = work.fit_rows(request.fit_tokens)
    work.cut_out(request.removal.of(work.base.info.num_layers).removed)
    done = work.repaired(rows, request.method, request.batch_size)
    work.open(rows.info)
    if done.applied:
        work.add(done.handle, command_of(request, work.base.info))
    else:
        work.say(f"The repair was not applied: {done.treatment.note or 'it did not help.'}")
    work.finish()
    return replace(work.shown, treatment=done.treatment, applied=done.applied)


def shrink(request: ShrinkRequest, service: Service, place: Place, watch: Watch) -> Treating:
    """Remove the layer that costs least, repair, measure again, and so on; then score the cut that it ended with.

    Layers are chosen on the windows of the ledger, which then says so, or on the text that repairs are fitted to. A
    stop keeps what is done, and scores it.
    """
    from shortviz.repair.repair import check_method
    from shortviz.repair.shrink import check_layers, shrink
    from shortviz.text.tokens import make_windows

    check_method(request.method)
    work = CutLedger(request, service, place, watch, fits=lambda layers: check_layers(layers, request.to_layers))
    base = work.base
    gone = sorted(base.info.layer_bytes, reverse=True)[: base.info.num_layers - request.to_layers]
    work.check_room(base, fewer_bytes=sum(gone))
    rows = work.fit_rows(request.fit_tokens)
    if request.choose_on_text:
        windows = make_windows(request.text, SHRINK_WINDOWS, base.tokenizer, work.text)
    else:
        windows = work.windows
        work.named("which the layers were chosen on")
    facts = (windows.info.fingerprint, rows.info.fingerprint, request.method, request.batch_size)

    def as_treating(progress: Progress) -> Progress:
        def snapshot() -> Treating:
            steps = progress.snapshot().steps if progress.snapshot is not None else ()
            return Treating(model=request.model, removed=steps[-1].removed if steps else ())

        return replace(progress, snapshot=snapshot)

    path = work.unfinished("shrink", *facts, request.to_layers)
    shrunk = shrink(
        base, windows, rows, request.to_layers,
        method=request.method, batch_size=request.batch_size, checkpoint=path, watch=watch.mapped(as_treating),
    )  # fmt: skip
    if shrunk.note:  # nothing more can go: this is all of a shrinking to so many layers
        path.replace(work.unfinished("shrink", *facts, shrunk.handle.info.num_layers))
    work.cut_out(shrunk.steps[-1].removed)
    work.open(rows.info)
    work.say(shrunk.note)
    if shrunk.handle.treatments:
        left = replace(request, to_layers=shrunk.handle.info.num_layers)
        work.add(shrunk.handle, command_of(left, base.info))
    if shrunk.complete:
        work.finish()
    return replace(
        work.shown, steps=shrunk.steps, base_nll=shrunk.base_nll, complete=shrunk.complete, applied=True
    )  # fmt: skip


def heal(request: HealRequest, service: Service, place: Place, watch: Watch) -> Treating | None:
    """Train a cut model, repaired first where asked to, and score it; HealHistory streams out inside Treating.

    A stop keeps the best weights so far, scores them, and leaves a checkpoint from which the same request goes on. On
    several devices (`accelerate launch`) the first process returns what was made, the others None.
    """
    from shortviz.heal.student import check_packages, check_quantiser
    from shortviz.repair.repair import check_method

    check_packages(request.settings())
    if request.repair is not None:
        check_method(request.repair)
    with together(request.model) as (ref, is_main):
        request = replace(request, model=ref)
        place = place if is_main else Place(None)
        work = CutLedger(request, service, place, watch, fits=request.removal.of, scores=is_main)
        recipe = request.settings(work.base.info)
        if recipe.quantize == "4bit":  # told before the cut is scored and repaired
            check_quantiser(work.base.model.device)
        tokens, heldout = _split(work, recipe.length)
        begin = work.cut_out(request.removal.of(work.base.info.num_layers).removed)
        work.open(tokens.info)
        if request.repair is not None:
            begin = _begin(work, request, request.repair, tokens)
        healed = _trained(work, begin, tokens, heldout)
        if not is_main:
            return None
        work.shown = replace(work.shown, history=healed.history, methods=kept.methods_of(begin))
        work.say(healed.history.note if healed.applied else healed.treatment.note)
        if healed.applied:
            work.add(healed.handle, command_of(request, work.base.info), healed)
        complete = healed.history.complete or not watch.stopped
        if complete:
            work.finish()
        return replace(work.shown, treatment=healed.treatment, applied=healed.applied, complete=complete)


def _split(work: CutLedger, length: int) -> "tuple[TokenSet, WindowSet]":
    """Return the text to train on and what is held out of it."""
    from shortviz.heal.data import split_heldout
    from shortviz.text.tokens import tokenize_rows

    return split_heldout(tokenize_rows(work.text, work.request.text, work.base.tokenizer), window=length)


def _begin(work: CutLedger, request: HealRequest, method: str, tokens: "TokenSet") -> "ModelHandle":
    """Return the repaired cut, added to the ledger; the cut where the repair does not help."""
    rows = work.fit_rows(before=tokens)
    done = work.repaired(rows, method)
    if not done.applied:
        told = f"The repair was not applied. {done.treatment.note}"
        work.say(told)
        work.watch.say(told)
        return work.cut
    same = RepairRequest(
        model=request.model, removal=request.removal, text=replace(request.text, max_length=_row_length(request.text)),
        method=method, fit_tokens=rows.info.tokens,
    )  # fmt: skip
    work.add(done.handle, command_of(same, work.base.info))
    return done.handle


def _trained(work: CutLedger, begin: "ModelHandle", tokens: "TokenSet", heldout: "WindowSet") -> "Healed":
    """Return what training made of a cut model; it is kept while it is unfinished."""
    from shortviz.heal import heal as training

    assert isinstance(work.request, HealRequest)
    recipe = work.request.settings(work.base.info)
    path = None
    if work.scores:
        before = [(t.method, sorted(t.settings.items(), key=str)) for t in begin.treatments]
        texts, world = (tokens.info.fingerprint, heldout.info.fingerprint), os.environ.get("WORLD_SIZE", "1")
        path = work.unfinished("heal", _removed(begin), before, recipe, *texts, world)

    def as_treating(progress: Progress) -> Progress:
        def snapshot() -> Treating:
            if progress.snapshot is not None:
                work.shown = replace(work.shown, history=progress.snapshot())
            return work.shown

        return replace(progress, snapshot=snapshot)

    return training.heal(
        begin, tokens, recipe, base=work.base, heldout=heldout, checkpoint=path, watch=work.watch.mapped(as_treating)
    )  # fmt: skip


@contextmanager
def together(ref: ModelRef) -> Iterator[tuple[ModelRef, bool]]:
    """Join the other processes of `accelerate launch`; gives (model on this process's device, is it the first).

    Alone, nothing happens.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ref, True
        return
    import torch
    from accelerate import PartialState

    state: Any = PartialState(cpu=ref.device == "cpu" or not torch.cuda.is_available())
    on = state.device
    try:
        yield replace(ref, device="cpu" if on.type == "cpu" else str(on)), bool(state.is_main_process)
    finally:
        state.destroy_process_group()


# On the models of a ledger that is there: ask them questions, bring one back, let them write.


def ask(request: AskRequest, service: Service, place: Place, watch: Watch) -> int:
    """Ask the model of every step the questions, as far as it is in memory or kept; return how many were scored."""
    base = service.models.load(request.model, watch)
    from shortviz.model.prune import prune

    removed = request.removal.removed
    ledger = known_ledger(service, request.model, place.run, removed, request.text)
    if ledger is None:
        raise RunError(f"There is no ledger of the cut of layers {layers_text(removed)}; repair or heal it first.")
    cut = prune(base, PrunePlan(num_layers=base.info.num_layers, removed=removed))
    done = 0
    for number, step in enumerate(ledger.steps):
        model = {"uncut": base, "cut": cut}.get(step.name) or _of_step(request, service, place, base, step)
        if model is None or watch.stopped:
            continue
        words = f"model {number + 1} of {len(ledger.steps)}, {step.label}"
        score = measure.model_score(
            service, request.model, place.run, model, request.task, watch=watch.labelled(detail=words, snapshot=None)
        )
        if score is None:
            break
        place.update(lambda run, step=step, score=score: _asked(run, ledger, step, score, base.info))  # type: ignore[misc]
        done += 1
    return done


def _asked(run: Run | None, ledger: Ledger, step: LedgerStep, score: TaskScore, info: ModelInfo) -> Run:
    """Return the run with a step's score in its ledger of this cut and text, as that is by now."""
    run = run or new_run(info, ledger.text)
    same = [each for each in run.ledgers if each.removed == ledger.removed and each.text == ledger.text]
    return with_ledger(run, with_task_score(same[-1] if same else ledger, step.name, step.methods, score))


def _of_step(
    request: AskRequest | BringBackRequest, service: Service, place: Place, base: "ModelHandle", step: LedgerStep
) -> "ModelHandle | None":
    """Return a treated model from memory, else from what is kept beside the place's runs, else None."""
    removed = request.removal.removed
    found = service.treated.get((request.model, removed, step.methods))
    key = kept.kept_by(service, place.keys, removed, step.methods)
    return found or (kept.bring_back(service, key, base, removed, step) if key is not None else None)


def bring_back(request: BringBackRequest, service: Service, place: Place, watch: Watch) -> None:
    """Put a treated model into memory again from what is kept beside the run: nothing is repaired or trained."""
    base = service.models.load(request.model, watch)
    ledger = ledger_of(place.run, request.removal.removed)
    steps = [step for step in ledger.steps if step.methods == request.methods] if ledger is not None else []
    found = _of_step(request, service, place, base, steps[-1]) if steps else None
    if found is None:
        raise RunError("Nothing of this model is kept beside the run; repair or heal again.")
    problem = kept.put_in_memory(service, request.model, request.removal.removed, base, found)
    if problem:
        raise ResourceError(problem)


def write_continuations(request: ContinueRequest, service: Service, place: Place, watch: Watch) -> None:
    """Let every model of a ledger that is in memory continue the prompt, the uncut and the cut one always."""
    base = service.models.load(request.model, watch)
    from shortviz.model.prune import prune

    ref, removed, prompt = request.model, request.removal.removed, request.prompt
    ledger = ledger_of(place.run, removed)
    cut = prune(base, PrunePlan(num_layers=base.info.num_layers, removed=removed))
    write(service, ref, "uncut", base, (), prompt, watch)
    write(service, ref, "cut", cut, (), prompt, watch)
    for step in ledger.steps if ledger is not None else ():
        found = treated(service, ref, removed, step) if step.methods else None
        if found is not None:
            write(service, ref, step.name, found, step.methods, prompt, watch)
