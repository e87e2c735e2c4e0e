"""What a clicked block really does, as a job: a first look soon, then the windows; torch is imported in the background.

The uncut model's share of the first look is worked out as soon as the model is loaded, so that a click waits for the
cut model alone.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from shortviz.progress import Progress, Watch
from shortviz.records import Block, Evaluation, ModelRef, PrunePlan, TextSpec, WindowSpec
from shortviz.settings import settings
from shortviz.ui.measured import from_map
from shortviz.ui.resources import Bench, JobContext
from shortviz.ui.shelves import Inspection

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle
    from shortviz.losses import BaseScores
    from shortviz.records import WindowSet

APP_WINDOWS: Final = WindowSpec(window=256, windows=32)
"""Small windows: the numbers grow steadier before one's eyes, and there are enough of them for an error bar."""

FIRST_LOOK_TOKENS: Final = 128
"""The first number rests on the beginning of the first window alone: it is there within two seconds on two cores."""

WINDOWS_BEFORE_TEXT: Final = 3
"""The first numbers come before the continuations, the rest of the windows after."""

NEW_TOKENS: Final = 32


def windows_of(bench: Bench, ref: ModelRef, spec: TextSpec, handle: "ModelHandle") -> "WindowSet":
    """Return the app's evaluation windows of a text, cut once per process."""
    from shortviz.texts import make_windows

    return bench.windows.get((ref, spec)) or bench.windows.put(
        (ref, spec), make_windows(spec, APP_WINDOWS, handle.tokenizer)
    )


def first_look(windows: "WindowSet") -> "WindowSet":
    """Return the beginning of the first window: as few tokens as say anything."""
    from shortviz.texts import fingerprint

    tokens = windows.tokens[:1, :FIRST_LOOK_TOKENS]
    length = tokens.shape[1]
    info = replace(windows.info, rows=1, tokens=length, max_length=length, fingerprint=fingerprint(tokens))
    return replace(windows, tokens=tokens, info=info)


def prepare(bench: Bench, ref: ModelRef, spec: TextSpec, handle: "ModelHandle") -> None:
    """Have the uncut model's share of the first look worked out, before anybody clicks."""

    def work(watch: Watch) -> None:
        look = first_look(windows_of(bench, ref, spec, handle))
        base_scores(bench, ref, handle).window(look.tokens[0], watch)

    # Where it cannot start, because too many jobs wait, whoever clicks does without it.
    bench.submit(JobContext(kind="prepare", ref=ref, evaluation=spec), f"Prepare {ref.id}", work, lane="inspect")


def start_inspect(
    bench: Bench, ref: ModelRef, block: Block, spec: TextSpec, *, prompt: str, key: str | None, text_first: bool = False
) -> str:
    """Measure what removing a block does: loss by windows, then both continuations; Inspection records stream out."""

    def work(watch: Watch) -> Inspection:
        handle = bench.models.load(ref, watch)
        from shortviz.pruning import prune

        pruned = prune(handle, PrunePlan.of_blocks(handle.info.num_layers, block))
        found = _Found(bench, ref, block, spec, prompt, key, watch)
        if text_first:
            found.write(handle, pruned)
        found.score(handle, pruned, key)
        if not text_first:
            found.write(handle, pruned)
        return found.inspection

    context = JobContext(kind="inspect", ref=ref, run_key=key, evaluation=spec, block=block, prompt=prompt)
    return bench.submit(context, f"Removing {block}", work, lane="inspect")


class _Found:
    """One block's inspection as it grows; every step that is known already is taken from the bench."""

    def __init__(
        self, bench: Bench, ref: ModelRef, block: Block, spec: TextSpec, prompt: str, key: str | None, watch: Watch
    ) -> None:
        self.bench, self.ref, self.block, self.spec, self.watch = bench, ref, block, spec, watch
        self.inspection = Inspection(prompt=prompt, evaluation=measured(bench, ref, spec, block))

    def score(self, handle: "ModelHandle", pruned: "ModelHandle", key: str | None) -> None:
        if (self.inspection.evaluation and self.inspection.evaluation.complete) or self.watch.stopped:
            return
        from shortviz.losses import evaluate

        windows = windows_of(self.bench, self.ref, self.spec, handle)
        scores = base_scores(self.bench, self.ref, handle)
        kept = _kept(self.bench, key, self.block, windows.info.fingerprint)
        if kept is not None:
            self._keep(kept)
            return

        if self.inspection.evaluation is None:
            hears = Watch(stop=self.watch.stop)  # what is told are inspections, and the look alone is none
            look = evaluate(pruned, first_look(windows), base=handle, base_scores=scores, watch=hears)
            self._keep(replace(look, complete=False))
            self._show()

        def then_write(progress: Progress) -> None:
            self._evaluating(progress)
            if progress.done == WINDOWS_BEFORE_TEXT:  # between two windows: the model is free
                self.write(handle, pruned)

        done = evaluate(pruned, windows, base=handle, base_scores=scores, watch=Watch(then_write, self.watch.stop))
        self._keep(done)
        if done.complete and key is not None:
            self.bench.runs.add_evaluation(key, done)

    def write(self, handle: "ModelHandle", pruned: "ModelHandle") -> None:
        prompt = self.inspection.prompt
        if not prompt.strip():
            return
        for name, model, removed in (("uncut", handle, ()), ("cut", pruned, self.block.layers)):
            if self.watch.stopped:
                return
            text = self.bench.continuations.get((self.ref, removed, prompt))
            if text is None:
                text = self._continue(name, model, prompt)
                if not self.watch.stopped:
                    self.bench.continuations.put((self.ref, removed, prompt), text)
            self._show_text(name, text, NEW_TOKENS)

    def _continue(self, name: str, model: "ModelHandle", prompt: str) -> str:
        from shortviz.generation import continue_text

        written: list[str] = []

        def on_text(piece: str) -> None:
            written.append(piece)
            self._show_text(name, "".join(written), len(written))

        return continue_text(
            model, prompt, max_new_tokens=min(NEW_TOKENS, settings().max_new_tokens), on_text=on_text, watch=self.watch
        )

    def _show_text(self, name: str, text: str, tokens: int) -> None:
        self.inspection = (
            replace(self.inspection, uncut=text) if name == "uncut" else replace(self.inspection, cut=text)
        )
        shown = self.inspection
        self.watch.tell(f"write, {name}", done=tokens, total=NEW_TOKENS, unit="tokens", snapshot=lambda: shown)

    def _show(self) -> None:
        shown = self.inspection
        self.watch.tell("evaluate", done=0, total=APP_WINDOWS.windows, unit="windows", snapshot=lambda: shown)

    def _evaluating(self, progress: Progress) -> None:
        def snapshot() -> Inspection:
            if progress.snapshot is not None:
                self._keep(progress.snapshot())
            return self.inspection

        self.watch.report(replace(progress, snapshot=snapshot))

    def _keep(self, done: Evaluation) -> None:
        """Keep the evaluation that rests on most text."""
        old = self.inspection.evaluation
        if old is None or done.score.tokens >= old.score.tokens:
            self.inspection = replace(self.inspection, evaluation=done)
            self.bench.measured.put((self.ref, self.spec, self.block.layers), done)


def _kept(bench: Bench, key: str | None, block: Block, fingerprint: str) -> Evaluation | None:
    """Return what the run holds of exactly these windows: the measured map's cell, a finished evaluation, or None."""
    run = bench.runs.get(key) if key is not None else None
    if (
        run is not None
        and run.losses is not None
        and run.losses.complete
        and run.losses.text.fingerprint == fingerprint
    ):
        cell = from_map(run.losses, run.model, block)
        if cell is not None:
            return cell
    found = run.evaluations if run is not None else ()
    same = (block.layers, fingerprint, True)
    return next((e for e in found if (e.removed, e.text.fingerprint, e.complete) == same), None)


def measured(bench: Bench, ref: ModelRef, spec: TextSpec, block: Block) -> Evaluation | None:
    """Return what was measured for a block on this text in this process, complete or not."""
    return bench.measured.get((ref, spec, block.layers))


def base_scores(bench: Bench, ref: ModelRef, handle: "ModelHandle") -> "BaseScores":
    """Return the uncut model's kept results, which every block of the model shares."""
    from shortviz.losses import BaseScores

    kept = bench.base_scores.get(ref)
    if kept is None or kept.handle is not handle:
        kept = bench.base_scores.put(ref, BaseScores(handle))
    return kept
