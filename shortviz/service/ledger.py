"""The work of a background job on one cut: its ledger as it grows, the models that are made, the texts they write.

No streamlit is called in here, for a job may not; everything that needs torch is imported by the functions.
"""

import hashlib
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shortviz.errors import ResourceError, RunError, ShortvizError
from shortviz.progress import Progress, Watch
from shortviz.records.formatting import layers_text
from shortviz.records.heal import HealHistory, HealSettings
from shortviz.records.ledger import Ledger, LedgerStep, treated_name
from shortviz.records.ledger_steps import add_step, start_ledger, with_task_score
from shortviz.records.measured import Evaluation
from shortviz.records.model import ModelInfo, ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.records.run import Run
from shortviz.records.text import TaskScore, TaskSpec, TextSpec, WindowSpec
from shortviz.runs.run import new_run, with_evaluation, with_ledger
from shortviz.service import kept as kept_models
from shortviz.service import measure
from shortviz.service.service import JobContext, Service
from shortviz.settings import settings

if TYPE_CHECKING:
    from shortviz.cli.options import LoadOptions
    from shortviz.heal.heal import Healed
    from shortviz.model.handle import ModelHandle
    from shortviz.records.heal import HealSettings
    from shortviz.records.ledger import Ledger
    from shortviz.records.measured import Evaluation, ExportReport
    from shortviz.records.plan import PrunePlan
    from shortviz.records.text import TaskRows, TaskScore, TextInfo, TextSpec, TokenSet, WindowSet, WindowSpec


# What the app knows of a cut and of what was done after it: records and look-ups, no torch.

METHODS = {"seam_refit": "Seam refit", "linear_fold": "Linear fold", "scale": "Scale"}
"""The repairs that the app offers, by the names of `shortviz.repair`."""
TREATING = ("repair", "heal")
"""Kinds of jobs that add to the ledger of a cut; `shrink` finds a cut of its own."""
LOOKING = ("ask", "bring")
"""Kinds of jobs on the models that a ledger has: asking them questions, bringing one back."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Treating:
    """A repair or a healing as it goes, and what it came to."""

    ledger: Ledger | None = None
    history: HealHistory | None = None
    note: str = ""
    """Why nothing was kept, where nothing was."""
    removed: tuple[int, ...] = ()
    """The cut that `shrink` ended with; elsewhere that of the ledger."""


def ledger_of(run: Run | None, removed: tuple[int, ...]) -> Ledger | None:
    """Return the run's newest ledger of a cut, whatever text it was scored on."""
    found = [ledger for ledger in run.ledgers if ledger.removed == removed] if run is not None else []
    return found[-1] if found else None


def paired(evaluation: Evaluation | None) -> bool:
    """Return whether an evaluation kept what paired errors of other steps are made of."""
    return (
        evaluation is not None
        and evaluation.complete
        and evaluation.base is not None
        and len(evaluation.score.window_nll) == len(evaluation.base.window_nll) == evaluation.score.windows
    )


def treated(bench: Service, ref: ModelRef | None, removed: tuple[int, ...], step: LedgerStep) -> "ModelHandle | None":
    """Return the model of a treated step where it is still in memory."""
    return bench.treated.get((ref, removed, step.methods)) if ref is not None else None


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


REPAIR_BATCH: Final = 4 * measure.CPU_BATCH


class Writer:
    """Continuations of one prompt, kept on the bench as they are done."""

    def __init__(self, bench: Service, context: JobContext, watch: Watch) -> None:
        self.bench, self.context, self.watch = bench, context, watch

    def write(self, name: str, model: "ModelHandle", removed: tuple[int, ...], methods: tuple[str, ...]) -> str:
        """Return a model's continuation, from memory where it is known; "" without a prompt or after a stop."""
        prompt = self.context.prompt
        key = text_key(self.context.ref, removed, methods, prompt)
        known = self.bench.continuations.get(key)
        if known is not None or not prompt.strip() or self.watch.stopped:
            return known or ""
        from shortviz.measure.generation import continue_text

        most = min(measure.NEW_TOKENS, settings().max_new_tokens)
        self.watch.tell(f"write, {name}", done=0, total=1, unit="steps")
        text = continue_text(model, prompt, max_new_tokens=most, watch=self.watch)
        return text if self.watch.stopped else self.bench.continuations.put(key, text)


class CutWork:
    """One cut and its ledger as it grows; what is known already is taken from the bench."""

    def __init__(self, bench: Service, context: JobContext, watch: Watch, known: Run | None) -> None:
        self.bench, self.context, self.watch, self.known = bench, context, watch, known
        self.shown = Treating()
        self.base = bench.models.load(context.ref, watch)
        from shortviz.model.prune import prune

        plan = PrunePlan(num_layers=self.base.info.num_layers, removed=context.removed)
        self.pruned = prune(self.base, plan)
        assert context.evaluation is not None
        self.spec = context.evaluation
        self.windows = measure.windows_of(bench, context.ref, self.spec, self.base)
        self.texts = Writer(bench, context, watch)
        self.length = (context.recipe or HealSettings()).length
        """Tokens of a held-out window."""
        self._texts: tuple[TokenSet, WindowSet] | None = None

    def open_ledger(self) -> None:
        """Score the uncut and the cut model, unless that is known with the loss of each window."""
        key = (self.context.ref, self.spec, self.context.removed)
        found = self.bench.measured.get(key)
        if found is None or not paired(found) or found.text.fingerprint != self.windows.info.fingerprint:
            found = self._in_run()
        if found is None:
            found = self._score(self.pruned, "the cut")
            if found.complete:
                self.bench.measured.put(key, found)
        ledger = start_ledger(
            found,
            uncut_task=self._accuracy(self.base, "uncut"),
            cut_task=self._accuracy(self.pruned, "the cut"),
            prompt=self.context.prompt,
            uncut_text=self.texts.write("uncut", self.base, (), ()),
            cut_text=self.texts.write("cut", self.pruned, self.context.removed, ()),
        )
        self._keep(ledger, found)

    def _in_run(self) -> Evaluation | None:
        run = self.bench.runs.get(self.context.run_key or "") or self.known
        fingerprint = self.windows.info.fingerprint
        steps = [
            step.evaluation for ledger in (run.ledgers if run else ()) for step in ledger.steps if step.name == "cut"
        ]
        found = [*(run.evaluations if run is not None else ()), *steps]
        same = [
            e for e in found if e.removed == self.context.removed and e.text.fingerprint == fingerprint and paired(e)
        ]
        return same[-1] if same else None

    def kept(self, methods: tuple[str, ...]) -> "ModelHandle | None":
        """Return a treated model of this cut that is in memory, fitted to the text that is chosen now."""
        found = self.bench.treated.get((self.context.ref, self.context.removed, methods))
        wanted = self._repair_tokens().info.fingerprint if found is not None else ""
        texts = [t.text.fingerprint for t in found.treatments if t.text is not None] if found is not None else []
        return found if wanted in texts else None

    def repair(self, cut: "ModelHandle", method: str) -> "ModelHandle | None":
        """Return the repaired model, or None where the repair did not help; the reason is then shown."""
        from shortviz.repair.repair import repair

        done = repair(cut, self.base, self._repair_tokens(), method=method, batch_size=REPAIR_BATCH, watch=self.watch)
        if done.applied:
            return done.handle
        why = done.treatment.note or "it did not help."
        self.shown = replace(self.shown, note=f"The repair was not applied: {why}")
        return None

    def heal(self, begin: "ModelHandle", recipe: HealSettings) -> None:
        """Train, then score what was best, even after a stop."""
        from shortviz.heal.heal import heal

        tokens, heldout = self._split()
        checkpoint = self._checkpoint(begin, recipe, tokens)

        def as_treating(progress: Progress) -> Progress:
            def snapshot() -> Treating:
                if progress.snapshot is not None:
                    self.shown = replace(self.shown, history=progress.snapshot())
                return self.shown

            return replace(progress, snapshot=snapshot)

        healed = heal(
            begin, tokens, recipe, base=self.base, heldout=heldout, checkpoint=checkpoint,
            watch=self.watch.mapped(as_treating),
        )  # fmt: skip
        self.shown = replace(self.shown, history=healed.history, note=healed.history.note)
        if healed.applied:
            self.add(healed.handle, healed)
        else:
            self.shown = replace(self.shown, note=healed.treatment.note)

    def add(self, model: "ModelHandle", healed: "Healed | None" = None) -> None:
        """Score a treated model, let it write, and keep it and its step."""
        methods, name = kept_models.methods_of(model), treated_name(model.treatments)
        evaluation = self._score(model, name)
        text = self.texts.write(name, model, self.context.removed, methods)
        task = self._accuracy(model, name)
        assert self.context.run_key is not None
        problems = (
            kept_models.put_in_memory(self.bench, self.context.ref, self.context.removed, self.base, model),
            kept_models.keep(self.bench, self.context.run_key, self.base, model, healed),
        )
        self.shown = replace(self.shown, note=" ".join(part for part in (self.shown.note, *problems) if part))
        assert self.shown.ledger is not None, "the ledger is opened first"
        ledger = add_step(
            self.shown.ledger, name, evaluation, model.treatments, task=task, continuation=text,
        )  # fmt: skip
        self._keep(ledger)

    def _accuracy(self, model: "ModelHandle", name: str) -> "TaskScore | None":
        """Return how many of the chosen questions a model gets right; None without questions, or after a stop."""
        spec = self.context.task
        if spec is None or self.watch.stopped:
            return None
        return measure.model_score(
            self.bench, self.context.ref, self.bench.runs.get(self.context.run_key or "") or self.known, model, spec,
            watch=self.watch.labelled(detail=name, snapshot=lambda: self.shown),
        )  # fmt: skip

    def _score(self, model: "ModelHandle", name: str) -> Evaluation:
        """Return the evaluation on all windows; what a stop has left behind is scored to the end."""
        from shortviz.errors import Stopped
        from shortviz.measure.losses import evaluate

        heard = Watch(self.watch.on_progress) if self.watch.stopped else self.watch
        found = evaluate(
            model,
            self.windows,
            base=self.base,
            base_scores=measure.base_scores(self.bench, self.context.ref, self.base),
            watch=heard.labelled(detail=name, snapshot=lambda: self.shown),
        )
        if not found.complete:
            raise Stopped("Stopped before every window was scored; there is nothing to compare yet.")
        return found

    def _keep(self, ledger: "Ledger", evaluation: Evaluation | None = None) -> None:
        """Put the ledger (and the cut's evaluation) into the run, and show it as it then is."""

        def change(old: Run | None) -> Run:
            run = old or self.known or new_run(self.base.info, self.windows.info)
            run = with_evaluation(run, evaluation) if evaluation is not None else run
            return with_ledger(run, ledger)

        key = self.context.run_key
        assert key is not None
        self.bench.runs.update(key, change)
        run = self.bench.runs.get(key)
        same = [each for each in run.ledgers if each.removed == ledger.removed] if run is not None else [ledger]
        self.shown = replace(self.shown, ledger=same[-1], removed=ledger.removed)

    def _repair_tokens(self) -> "TokenSet":
        """Return the beginning of the training text in rows, none of which a training holds out."""
        from shortviz.errors import TextError
        from shortviz.text.tokens import fit_rows

        spec = self.context.training
        assert spec is not None
        try:
            before = self._split()[0]
        except TextError:
            if self.context.recipe is not None:
                raise
            before = None  # too little text to train on: nothing can be held out of it, and it may do for a repair
        return fit_rows(spec, self.base.tokenizer, length=spec.max_length, before=before)

    def _split(self) -> "tuple[TokenSet, WindowSet]":
        """Return the text to train on and what is held out of it, read once."""
        from shortviz.heal.data import split_heldout
        from shortviz.text.tokens import tokenize

        spec = self.context.training
        assert spec is not None
        if self._texts is None:
            self.watch.tell("read text", done=0, total=1, unit="steps")
            tokens = tokenize(spec, self.base.tokenizer)
            self._texts = split_heldout(tokens, window=self.length)
        return self._texts

    def _checkpoint(self, begin: "ModelHandle", recipe: HealSettings, tokens: "TokenSet") -> Path:
        """Return where this training is kept; those of other trainings in the same run are removed."""
        before = [(t.method, sorted(t.settings.items(), key=str)) for t in begin.treatments]
        facts = repr((self.context.removed, before, recipe, tokens.info.fingerprint))
        folder = self.bench.runs.path(self.context.run_key or "")
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"heal-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.safetensors"
        for old in folder.glob("heal-*.safetensors"):
            if old != target:
                old.unlink(missing_ok=True)
        return target


# What `repair`, `shrink` and `heal` share: the ledger of a cut as it grows, kept in a run, and the export.


class LedgerWork:
    """The ledger of one cut: every model is scored on the same windows, and on the same questions where there are."""

    def __init__(self, base: "ModelHandle", windows: "WindowSet", questions: "TaskRows | None", watch: Watch) -> None:
        from shortviz.measure.losses import BaseScores

        self.base, self.windows, self.questions, self.watch = base, windows, questions, watch
        self.base_scores = BaseScores(base)
        self.ledger: Ledger
        self.newest: Evaluation
        """Of the model that was scored last."""

    def open(self, cut: "ModelHandle") -> None:
        """Score the uncut and the cut model."""
        from shortviz.records.ledger_steps import start_ledger

        self.newest = self._evaluate(cut, self.watch)
        self.ledger = start_ledger(self.newest, uncut_task=self._score(self.base), cut_task=self._score(cut))

    def add(self, handle: "ModelHandle", *, whatever_stop: bool = False) -> None:
        """Score a treated model; with `whatever_stop` its windows even after a stop, for it is what the stop left."""
        from shortviz.records.ledger import treated_name
        from shortviz.records.ledger_steps import add_step

        self.newest = self._evaluate(handle, Watch(self.watch.on_progress) if whatever_stop else self.watch)
        self.ledger = add_step(
            self.ledger,
            treated_name(handle.treatments),
            self.newest,
            handle.treatments,
            task=self._score(handle),
        )

    def _evaluate(self, handle: "ModelHandle", watch: Watch) -> "Evaluation":
        from shortviz.measure.losses import evaluate

        return evaluate(handle, self.windows, base=self.base, base_scores=self.base_scores, watch=watch)

    def _score(self, handle: "ModelHandle") -> "TaskScore | None":
        """Return the accuracy where every question was answered; None after a stop, which loses nothing else."""
        if self.questions is None or self.watch.stopped:
            return None
        from shortviz.measure.tasks import whole_score

        return whole_score(handle, self.questions, watch=self.watch)

    def export(self, handle: "ModelHandle", folder: Path) -> "ExportReport":
        """Write a model and prove it."""
        from shortviz.export.export import export_checkpoint

        return export_checkpoint(handle, folder, base_info=self.base.info, evaluation=self.newest, watch=self.watch)

    def save(self, out: Path, text: "TextInfo") -> None:
        """Add the ledger to the run in a folder; a new run is one of the text that was fitted to."""
        from shortviz.runs import run as runs

        known = (out / runs.FILE).is_file()
        run = runs.load_run(out) if known else runs.new_run(self.base.info, text)
        runs.save_run(runs.with_ledger(run, self.ledger), out)


# Where `repair`, `shrink` and `heal` work: what may fail at the end is checked first, and loses nothing if it does.
#
# What was computed lies in the run directory until it is written where it was wanted. Without --out there is one for
# the time of the work beside the export's or the adapter's folder; it goes away when that is written and proved.


def check_folders(**given: Path | None) -> None:
    """Raise ShortvizError where two options name one folder, ExportError where one cannot be written or is taken.

    `out` is a run directory, which may be there already.
    """
    from shortviz.export.folder import check_target, check_writable

    named = {name: folder.resolve() for name, folder in given.items() if folder is not None}
    folders = list(named.values())
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        names = [f"--{name}" for name in given]
        raise ShortvizError(f"{twice} was given twice; give {', '.join(names[:-1])} and {names[-1]} a folder each.")
    for name, folder in given.items():
        if folder is not None:
            check_writable(folder)
            if name != "out":
                check_target(folder)


def check_room(export: Path | None, model: "ModelHandle", *, fewer_bytes: int = 0) -> None:
    """Raise ResourceError where the disk has no room for an export: told before work that it would lose.

    `model` is the cut one, for what comes after the cut leaves the size as it is; or one that is still to become
    smaller by so many bytes.
    """
    if export is None:
        return
    from shortviz.export.export import needed_bytes
    from shortviz.export.folder import check_space

    check_space(export.resolve(), needed_bytes(model) - fewer_bytes)


def check_run(out: Path | None, model: str) -> None:
    """Raise RunError where a folder holds a run of another model."""
    from shortviz.runs import run as runs

    if out is not None and (out / runs.FILE).is_file() and (found := runs.load_run(out).model.id) != model:
        raise RunError(f"{out} holds a run of {found}, not of {model}; choose another --out.")


def work_folder(out: Path | None, *written: Path | None) -> Path | None:
    """Return the run directory to work in: the one that was given, or one beside the first folder to be written."""
    target = next((folder for folder in written if folder is not None), None)
    if out is not None or target is None:
        return out
    target = Path(os.path.abspath(target.expanduser()))
    return target.with_name(f"{target.name}-work")


@contextmanager
def kept_in(work: Path | None, out: Path | None) -> Iterator[None]:
    """Write what was made: where that fails, say where all that was computed for it is kept, and how to go on."""
    if work is None:
        yield
        return
    advice = f"What was computed is kept in {work}: run the same command again to go on from there"
    elsewhere = "" if out is not None else f" (with --out {shlex.quote(str(work))} where you name another folder)"
    try:
        yield
    except ShortvizError as error:
        error.args = (f"{error} {advice}{elsewhere}.",)
        raise
    except BaseException:
        print(f"{advice}{elsewhere}.", file=sys.stderr)
        raise


def clear_work(work: Path | None, out: Path | None, checkpoint: str) -> None:
    """Remove what a finished command does not need to go on from; of the run directory nothing else."""
    if work is None:
        return
    from shortviz.runs import run as runs

    (work / checkpoint).unlink(missing_ok=True)
    if out is None:
        (work / runs.FILE).unlink(missing_ok=True)
        with suppress(OSError):  # it holds something of somebody else's, and stays
            work.rmdir()


# The work of `shortviz heal`, step by step, and its place among several processes.

CHECKPOINT = "heal-checkpoint.safetensors"
"""In the run directory, while a training is unfinished."""


class HealWork:
    """One healing on the command line."""

    def __init__(
        self, base: "ModelHandle", training: "TextSpec", settings: "HealSettings", out: Path | None, watch: Watch
    ) -> None:
        from shortviz.heal.data import split_heldout
        from shortviz.heal.student import check_quantiser
        from shortviz.text.tokens import tokenize

        check_run(out, base.info.id)
        if settings.quantize == "4bit":  # told before the cut is scored and repaired
            check_quantiser(base.model.device)
        self.base, self.training, self.settings, self.out, self.watch = base, training, settings, out, watch
        tokens = tokenize(training, base.tokenizer)
        self.tokens, self.heldout = split_heldout(tokens, window=settings.length)
        self.kept: LedgerWork | None = None
        """The ledger, in the first process alone."""

    def score_on(self, spec: "TextSpec", windows: "WindowSpec", questions: "TaskRows | None") -> None:
        """Keep a ledger, scored on this text and these questions."""
        from shortviz.text.tokens import make_windows

        cut = make_windows(spec, windows, self.base.tokenizer)
        self.kept = LedgerWork(self.base, cut, questions, self.watch)

    def cut_out(self, plan: "PrunePlan", repair: str | None, row_length: int, export: Path | None) -> None:
        """Remove the layers, repair where asked to, and begin the ledger; an export must find room on its disk."""
        from shortviz.model import prune as pruning

        self.start = cut = pruning.prune(self.base, plan)
        check_room(export, cut)
        if self.kept is not None:
            self.kept.open(cut)
        if repair is None:
            return
        from shortviz.repair.repair import repair as repair_cut
        from shortviz.text.tokens import fit_rows

        rows = fit_rows(self.training, self.base.tokenizer, length=row_length, before=self.tokens)
        done = repair_cut(cut, self.base, rows, method=repair, watch=self.watch)
        if not done.applied:
            print(f"The repair was not applied. {done.treatment.note}", file=sys.stderr)
            return
        self.start = done.handle
        if self.kept is not None:
            self.kept.add(self.start)

    def train(self) -> "Healed":
        """Return what training made of the start; its checkpoint is in the run directory."""
        from shortviz.heal.heal import heal

        return heal(
            self.start,
            self.tokens,
            self.settings,
            base=self.base,
            heldout=self.heldout,
            checkpoint=self.out / CHECKPOINT if self.out is not None else None,
            watch=self.watch,
        )

    def score(self, healed: "Healed") -> "Ledger":
        """Return the ledger, with a healed step where something was learned: what a stop left is scored too."""
        assert self.kept is not None, "this is the first process"
        if healed.applied:
            self.kept.add(healed.handle, whatever_stop=True)
        return self.kept.ledger

    def write(self, healed: "Healed", export: Path | None, adapter: Path | None) -> "ExportReport | None":
        """Write what is wanted, and return the export's report."""
        assert self.kept is not None, "this is the first process"
        if adapter is not None and healed.adapter is not None:
            from shortviz.heal.adapter import export_adapter

            export_adapter(healed.adapter, adapter, base=self.base)
        return None if export is None else self.kept.export(healed.handle, export)

    def save(self) -> None:
        """Keep the ledger in the run directory."""
        if self.out is not None and self.kept is not None:
            self.kept.save(self.out, self.tokens.info)


class together:  # noqa: N801  # a context manager used like a function
    """Join the other processes of `accelerate launch`; gives (load options for this process's device, is it the first).

    Alone, nothing happens.
    """

    def __init__(self, load: "LoadOptions") -> None:
        self._load = load
        self._state: Any = None

    def __enter__(self) -> tuple["LoadOptions", bool]:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return self._load, True
        import torch
        from accelerate import PartialState

        self._state = PartialState(cpu=self._load.device == "cpu" or not torch.cuda.is_available())
        on = self._state.device
        device = "cpu" if on.type == "cpu" else str(on)
        return replace(self._load, device=device), bool(self._state.is_main_process)

    def __exit__(self, *_: object) -> None:
        if self._state is not None:
            self._state.destroy_process_group()


# Jobs on the models of a ledger that is there: bring one back from beside its run, ask all of them questions.


def start_bring_back(bench: Service, ref: ModelRef, removed: tuple[int, ...], step: LedgerStep, key: str) -> str:
    """Put a treated model into memory again from what is kept beside run `key`: nothing is repaired or trained."""

    def work(watch: Watch) -> None:
        handle = bench.models.load(ref, watch)
        found = kept_models.bring_back(bench, key, handle, removed, step)
        problem = kept_models.put_in_memory(bench, ref, removed, handle, found)
        if problem:
            raise ResourceError(problem)

    context = JobContext(kind="bring", ref=ref, run_key=key, removed=removed, methods=step.methods)
    return bench.submit(context, f"Bringing back: {step.label}", work, lane="inspect")


def start_questions(
    bench: Service, ref: ModelRef, ledger: Ledger, spec: TaskSpec, *, key: str, kept_in: str | None, known: Run | None
) -> str:
    """Ask the model of every step the questions, as far as it is in memory or kept beside run `kept_in`.

    The scores go into run `key`, made from `known` where it is new; the result is how many steps were scored.
    """

    def work(watch: Watch) -> int:
        handle = bench.models.load(ref, watch)
        from shortviz.model.prune import prune

        cut = prune(handle, PrunePlan(num_layers=handle.info.num_layers, removed=ledger.removed))
        done = 0
        for number, step in enumerate(ledger.steps):
            model = _model(bench, ref, handle, cut, ledger, step, kept_in)
            if model is None or watch.stopped:
                continue
            words = f"model {number + 1} of {len(ledger.steps)}, {step.label}"
            score = measure.model_score(
                bench, ref, bench.runs.get(key) or known, model, spec,
                watch=watch.labelled(detail=words, snapshot=None),
            )  # fmt: skip
            if score is None:
                break
            _keep(bench, key, known, ledger, step, score)
            done += 1
        return done

    context = JobContext(kind="ask", ref=ref, run_key=key, removed=ledger.removed, task=spec)
    return bench.submit(context, f"Questions for the cut of layers {layers_text(ledger.removed)}", work)


def _keep(bench: Service, key: str, known: Run | None, ledger: Ledger, step: LedgerStep, score: TaskScore) -> None:
    """Put a step's score into the run's ledger of this cut and text, as it is by now."""

    def change(old: Run | None) -> Run | None:
        run = old or known
        if run is None:
            return None
        same = [each for each in run.ledgers if each.removed == ledger.removed and each.text == ledger.text]
        asked = with_task_score(same[-1] if same else ledger, step.name, step.methods, score)
        return with_ledger(run, asked)

    bench.runs.update(key, change)


def _model(
    bench: Service, ref: ModelRef, base: "ModelHandle", cut: "ModelHandle", ledger: Ledger, step: LedgerStep,
    key: str | None,
) -> "ModelHandle | None":  # fmt: skip
    if step.name in ("uncut", "cut"):
        return base if step.name == "uncut" else cut
    found = bench.treated.get((ref, ledger.removed, step.methods))
    if found is None and key is not None and kept_models.is_kept(bench, key, ledger.removed, step.methods):
        found = kept_models.bring_back(bench, key, base, ledger.removed, step)
    return found


# Repair, heal and shrink as jobs: each adds to the ledger of its cut, and keeps the model that it made.
#
# As in `actions`, the work runs in a background thread that may not call streamlit, and imports torch in there.

SHRINK_WINDOWS: Final = WindowSpec(window=256, windows=8)
"""What shrink chooses layers on: few, for every layer that is left is measured at every step."""


def start_repair(
    bench: Service, ref: ModelRef, removed: tuple[int, ...], spec: TextSpec, training: TextSpec, *,
    method: str, key: str, known: Run | None, prompt: str, task: TaskSpec | None = None,
) -> str:  # fmt: skip
    """Repair a cut in closed form and score it on the cut's windows; the result is a Treating.

    `known` is the run that is shown: what it holds is kept where run `key` is made anew.
    """

    def work(watch: Watch) -> Treating:
        cut = CutWork(bench, context, watch, known)
        cut.open_ledger()
        repaired = cut.repair(cut.pruned, method)
        if repaired is not None:
            cut.add(repaired)
        return cut.shown

    context = JobContext(
        kind="repair", ref=ref, run_key=key, evaluation=spec, removed=removed, methods=(method,), training=training,
        prompt=prompt, task=task,
    )  # fmt: skip
    return bench.submit(context, f"Repair of the cut of layers {layers_text(removed)}", work, lane="inspect")


def start_heal(
    bench: Service, ref: ModelRef, removed: tuple[int, ...], spec: TextSpec, training: TextSpec, *,
    recipe: HealSettings, repair_first: str, key: str, known: Run | None, prompt: str, task: TaskSpec | None = None,
) -> str:  # fmt: skip
    """Train a cut model (repaired first by the method named, if any); HealHistory streams out inside Treating.

    A stop keeps the best weights so far, scores them, and leaves a checkpoint from which the same training goes on.
    """

    def work(watch: Watch) -> Treating:
        cut = CutWork(bench, context, watch, known)
        cut.open_ledger()
        begin = cut.pruned
        if repair_first:
            begin = cut.kept((repair_first,)) or cut.repair(begin, repair_first) or begin
            if begin.treatments:
                cut.add(begin)
        cut.heal(begin, recipe)
        return cut.shown

    methods = (repair_first, recipe.method) if repair_first else (recipe.method,)
    context = JobContext(
        kind="heal", ref=ref, run_key=key, evaluation=spec, removed=removed, methods=methods, training=training,
        recipe=recipe, prompt=prompt, task=task,
    )  # fmt: skip
    return bench.submit(context, f"Healing of the cut of layers {layers_text(removed)}", work)


def start_shrink(
    bench: Service, ref: ModelRef, to_layers: int, spec: TextSpec, training: TextSpec, *,
    method: str, key: str, known: Run | None, prompt: str, task: TaskSpec | None = None,
) -> str:  # fmt: skip
    """Remove the layer that costs least, repair, measure again, and so on; the result is a Treating of the last cut.

    Layers are chosen and repairs fitted on the training text; the ledger is scored on the evaluation text, which took
    no part. A stop keeps what is done, and scores it.
    """

    def work(watch: Watch) -> Treating:
        handle = bench.models.load(ref, watch)
        from shortviz.repair.shrink import shrink
        from shortviz.text.tokens import fit_rows, make_windows

        def as_treating(progress: Progress) -> Progress:
            def snapshot() -> Treating:
                steps = progress.snapshot().steps if progress.snapshot is not None else ()
                return Treating(removed=steps[-1].removed if steps else ())

            return replace(progress, snapshot=snapshot)

        windows, tokens = (
            make_windows(training, SHRINK_WINDOWS, handle.tokenizer),
            fit_rows(training, handle.tokenizer, length=training.max_length),
        )
        facts = hashlib.sha256(repr((training, method, to_layers)).encode()).hexdigest()
        checkpoint = bench.runs.path(key) / f"shrink-{facts[:12]}.safetensors"  # from which a killed server goes on
        shrunk = shrink(
            handle, windows, tokens, to_layers,
            method=method, batch_size=REPAIR_BATCH, checkpoint=checkpoint, watch=watch.mapped(as_treating),
        )  # fmt: skip
        cut = CutWork(bench, replace(context, removed=shrunk.steps[-1].removed), watch, known)
        cut.open_ledger()
        cut.shown = replace(cut.shown, note=shrunk.note)
        if shrunk.handle.treatments:
            cut.add(shrunk.handle)
        if shrunk.complete:
            checkpoint.unlink(missing_ok=True)
        return cut.shown

    context = JobContext(
        kind="shrink", ref=ref, run_key=key, evaluation=spec, methods=(method,), training=training, to_layers=to_layers,
        prompt=prompt, task=task,
    )  # fmt: skip
    return bench.submit(context, f"Shrinking to {to_layers} layers", work)


def start_continuations(
    bench: Service, ref: ModelRef, removed: tuple[int, ...], ledger: "Ledger | None", prompt: str
) -> str:
    """Let every model of a ledger that is in memory continue the prompt, the uncut and the cut one always."""

    def work(watch: Watch) -> None:
        handle = bench.models.load(ref, watch)
        from shortviz.model.prune import prune

        writer = Writer(bench, context, watch)
        writer.write("uncut", handle, (), ())
        writer.write("cut", prune(handle, PrunePlan(num_layers=handle.info.num_layers, removed=removed)), removed, ())
        for step in ledger.steps if ledger is not None else ():
            kept = bench.treated.get((ref, removed, step.methods)) if step.methods else None
            if kept is not None:
                writer.write(step.name, kept, removed, step.methods)

    context = JobContext(kind="continuations", ref=ref, removed=removed, prompt=prompt)
    return bench.submit(context, "Continuations of the prompt", work, lane="inspect")
