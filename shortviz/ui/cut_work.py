"""The work of a background job on one cut: its ledger as it grows, the models that are made, the texts they write.

No streamlit is called in here, for a job may not; everything that needs torch is imported by the functions.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shortviz.heal_settings import HealSettings
from shortviz.ledger import treated_name
from shortviz.ledger_steps import add_step, start_ledger
from shortviz.progress import Progress, Watch
from shortviz.records import Evaluation, PrunePlan, Run
from shortviz.runs import new_run, with_evaluation, with_ledger
from shortviz.settings import settings
from shortviz.ui import actions, inspect_actions, kept_models, task_actions
from shortviz.ui.resources import Bench, JobContext
from shortviz.ui.treating import Treating, paired, text_key

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle
    from shortviz.healing import Healed
    from shortviz.ledger import Ledger
    from shortviz.records import TaskScore, TokenSet, WindowSet

REPAIR_BATCH: Final = 4 * actions.CPU_BATCH


class Writer:
    """Continuations of one prompt, kept on the bench as they are done."""

    def __init__(self, bench: Bench, context: JobContext, watch: Watch) -> None:
        self.bench, self.context, self.watch = bench, context, watch

    def write(self, name: str, model: "ModelHandle", removed: tuple[int, ...], methods: tuple[str, ...]) -> str:
        """Return a model's continuation, from memory where it is known; "" without a prompt or after a stop."""
        prompt = self.context.prompt
        key = text_key(self.context.ref, removed, methods, prompt)
        known = self.bench.continuations.get(key)
        if known is not None or not prompt.strip() or self.watch.stopped:
            return known or ""
        from shortviz.generation import continue_text

        most = min(inspect_actions.NEW_TOKENS, settings().max_new_tokens)
        self.watch.tell(f"write, {name}", done=0, total=1, unit="steps")
        text = continue_text(model, prompt, max_new_tokens=most, watch=self.watch)
        return text if self.watch.stopped else self.bench.continuations.put(key, text)


class CutWork:
    """One cut and its ledger as it grows; what is known already is taken from the bench."""

    def __init__(self, bench: Bench, context: JobContext, watch: Watch, known: Run | None) -> None:
        self.bench, self.context, self.watch, self.known = bench, context, watch, known
        self.shown = Treating()
        self.base = bench.models.load(context.ref, watch)
        from shortviz.pruning import prune

        plan = PrunePlan(num_layers=self.base.info.num_layers, removed=context.removed)
        self.pruned = prune(self.base, plan)
        assert context.evaluation is not None
        self.spec = context.evaluation
        self.windows = inspect_actions.windows_of(bench, context.ref, self.spec, self.base)
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
        from shortviz.repair import repair

        done = repair(cut, self.base, self._repair_tokens(), method=method, batch_size=REPAIR_BATCH, watch=self.watch)
        if done.applied:
            return done.handle
        why = done.treatment.note or "it did not help."
        self.shown = replace(self.shown, note=f"The repair was not applied: {why}")
        return None

    def heal(self, begin: "ModelHandle", recipe: HealSettings) -> None:
        """Train, then score what was best, even after a stop."""
        from shortviz.healing import heal

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
        return task_actions.model_score(
            self.bench, self.context.ref, self.bench.runs.get(self.context.run_key or "") or self.known, model, spec,
            watch=self.watch.labelled(detail=name, snapshot=lambda: self.shown),
        )  # fmt: skip

    def _score(self, model: "ModelHandle", name: str) -> Evaluation:
        """Return the evaluation on all windows; what a stop has left behind is scored to the end."""
        from shortviz.errors import Stopped
        from shortviz.losses import evaluate

        heard = Watch(self.watch.on_progress) if self.watch.stopped else self.watch
        found = evaluate(
            model,
            self.windows,
            base=self.base,
            base_scores=inspect_actions.base_scores(self.bench, self.context.ref, self.base),
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
        from shortviz.fit_text import fit_rows

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
        from shortviz.heal_data import split_heldout
        from shortviz.texts import tokenize

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
