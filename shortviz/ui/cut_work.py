"""The work of a background job on one cut: its ledger as it grows, the models that are made, the texts they write.

No streamlit is called in here, for a job may not; everything that needs torch is imported by the functions.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shortviz.heal_settings import HealSettings
from shortviz.job_state import JobControl
from shortviz.ledger_steps import add_step, start_ledger
from shortviz.records import Evaluation, Progress, PrunePlan, Run, TextSpec, WindowSpec
from shortviz.runs import new_run, with_evaluation, with_ledger
from shortviz.settings import settings
from shortviz.ui import actions, inspect_actions
from shortviz.ui.resources import Bench, JobContext
from shortviz.ui.treating import Treating, paired, text_key

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle
    from shortviz.ledger import Ledger
    from shortviz.records import TokenSet

REPAIR_TOKENS: Final = 16_384
"""A repair is fitted to at most so many tokens of the training text: enough for its ridge, and done within a minute."""
HELD_OUT_WINDOWS: Final = 8
REPAIR_BATCH: Final = 4 * actions.CPU_BATCH


def repair_tokens(spec: TextSpec, handle: "ModelHandle") -> "TokenSet":
    """Return the first REPAIR_TOKENS of a text as rows of equal length, joined so that none of it is lost."""
    from shortviz.texts import make_windows, packed_rows

    size = WindowSpec(window=spec.max_length, windows=max(2, REPAIR_TOKENS // spec.max_length))
    return packed_rows(make_windows(spec, size, handle.tokenizer))


class Writer:
    """Continuations of one prompt, kept on the bench as they are done."""

    def __init__(self, bench: Bench, context: JobContext, control: JobControl) -> None:
        self.bench, self.context, self.control = bench, context, control

    def write(self, name: str, model: "ModelHandle", removed: tuple[int, ...], methods: tuple[str, ...]) -> str:
        """Return a model's continuation, from memory where it is known; "" without a prompt or after a stop."""
        prompt = self.context.prompt
        key = text_key(self.context.ref, removed, methods, prompt)
        known = self.bench.continuations.get(key)
        if known is not None or not prompt.strip() or self.control.stop.is_set():
            return known or ""
        from shortviz.generation import continue_text

        most = min(inspect_actions.NEW_TOKENS, settings().max_new_tokens)
        self.control.on_progress(Progress(stage=f"write, {name}", done=0, total=1, unit="steps"))
        text = continue_text(model, prompt, max_new_tokens=most, stop=self.control.stop)
        return text if self.control.stop.is_set() else self.bench.continuations.put(key, text)


class CutWork:
    """One cut and its ledger as it grows; what is known already is taken from the bench."""

    def __init__(self, bench: Bench, context: JobContext, control: JobControl, known: Run | None) -> None:
        self.bench, self.context, self.control, self.known = bench, context, control, known
        self.shown = Treating()
        self.base = bench.models.load(context.ref, control)
        from shortviz.pruning import prune

        plan = PrunePlan(num_layers=self.base.info.num_layers, removed=context.removed)
        self.pruned = prune(self.base, plan)
        assert context.evaluation is not None
        self.spec = context.evaluation
        self.windows = inspect_actions.windows_of(bench, context.ref, self.spec, self.base)
        self.texts = Writer(bench, context, control)

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

        done = repair(
            cut, self.base, self._repair_tokens(), method=method, batch_size=REPAIR_BATCH,
            on_progress=self.control.on_progress, stop=self.control.stop,
        )  # fmt: skip
        if done.applied:
            return done.handle
        self.shown = replace(self.shown, note=done.treatment.note or "The repair did not help and was not applied.")
        return None

    def heal(self, begin: "ModelHandle", recipe: HealSettings) -> None:
        """Train, then score what was best, even after a stop."""
        from shortviz.heal_data import split_heldout
        from shortviz.healing import heal
        from shortviz.texts import tokenize

        spec = self.context.training
        assert spec is not None
        self.control.on_progress(Progress(stage="read text", done=0, total=1, unit="steps"))
        tokens = tokenize(spec, self.base.tokenizer)
        length = min(recipe.length, inspect_actions.APP_WINDOWS.window)
        tokens, heldout = split_heldout(tokens, windows=HELD_OUT_WINDOWS, window=length)
        checkpoint = self._checkpoint(begin, recipe, tokens)

        def on_progress(progress: Progress) -> None:
            def snapshot() -> Treating:
                if progress.snapshot is not None:
                    self.shown = replace(self.shown, history=progress.snapshot())
                return self.shown

            self.control.on_progress(replace(progress, snapshot=snapshot))

        healed = heal(
            begin, tokens, recipe, base=self.base, heldout=heldout, checkpoint=checkpoint,
            on_progress=on_progress, stop=self.control.stop,
        )  # fmt: skip
        self.shown = replace(self.shown, history=healed.history, note=healed.history.note)
        self.add(healed.handle)

    def add(self, model: "ModelHandle") -> None:
        """Score a treated model, let it write, and keep it and its step."""
        methods = tuple(treatment.method for treatment in model.treatments)
        name = "healed" if any(t.kind == "heal" for t in model.treatments) else "repaired"
        evaluation = self._score(model, name)
        assert self.shown.ledger is not None, "the ledger is opened first"
        text = self.texts.write(name, model, self.context.removed, methods)
        self.bench.treated.put((self.context.ref, self.context.removed, methods), model)
        ledger = add_step(
            self.shown.ledger, "healed" if name == "healed" else "repaired", evaluation, model.treatments,
            continuation=text,
        )  # fmt: skip
        self._keep(ledger)

    def _score(self, model: "ModelHandle", name: str) -> Evaluation:
        """Return the evaluation on all windows; what a stop has left behind is scored to the end."""
        from shortviz.errors import Stopped
        from shortviz.losses import evaluate

        def on_progress(progress: Progress) -> None:
            self.control.on_progress(replace(progress, detail=name, snapshot=lambda: self.shown))

        found = evaluate(
            model,
            self.windows,
            base=self.base,
            base_scores=inspect_actions.base_scores(self.bench, self.context.ref, self.base),
            on_progress=on_progress,
            stop=None if self.control.stop.is_set() else self.control.stop,
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
        assert self.context.training is not None
        return repair_tokens(self.context.training, self.base)

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
