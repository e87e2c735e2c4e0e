"""What a clicked block really does, as a job: a first look soon, then the windows; torch is imported in the background.

The uncut model's share of the first look is worked out as soon as the model is loaded, so that a click waits for the
cut model alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shortviz.analysis.curve import further
from shortviz.errors import ShortvizError
from shortviz.progress import NO_WATCH, Progress, Watch
from shortviz.records.measured import Evaluation, from_map
from shortviz.records.model import ModelEstimate, ModelInfo, ModelRef
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.run import Run
from shortviz.records.text import MOST_PAIRED, TaskRows, TaskScore, TaskSpec, TextSpec, WindowSpec
from shortviz.runs.run import EXAMPLES, new_run, with_task
from shortviz.service.service import Inspection, JobContext, Service, import_engine, run_key
from shortviz.settings import settings

if TYPE_CHECKING:
    from shortviz.measure.losses import BaseScores
    from shortviz.model.handle import ModelHandle
    from shortviz.records.text import WindowSet


APP_WINDOWS: Final = WindowSpec(window=256, windows=32)
"""Small windows: the numbers grow steadier before one's eyes, and there are enough of them for an error bar."""

FIRST_LOOK_TOKENS: Final = 128
"""The first number rests on the beginning of the first window alone: it is there within two seconds on two cores."""

WINDOWS_BEFORE_TEXT: Final = 3
"""The first numbers come before the continuations, the rest of the windows after."""

NEW_TOKENS: Final = 32


def windows_of(bench: Service, ref: ModelRef, spec: TextSpec, handle: "ModelHandle") -> "WindowSet":
    """Return the app's evaluation windows of a text, cut once per process."""
    from shortviz.text.tokens import make_windows

    return bench.windows.get((ref, spec)) or bench.windows.put(
        (ref, spec), make_windows(spec, APP_WINDOWS, handle.tokenizer)
    )


def first_look(windows: "WindowSet") -> "WindowSet":
    """Return the beginning of the first window: as few tokens as say anything."""
    from shortviz.text.tokens import fingerprint

    tokens = windows.tokens[:1, :FIRST_LOOK_TOKENS]
    length = tokens.shape[1]
    info = replace(windows.info, rows=1, tokens=length, max_length=length, fingerprint=fingerprint(tokens))
    return replace(windows, tokens=tokens, info=info)


def prepare(bench: Service, ref: ModelRef, spec: TextSpec, handle: "ModelHandle") -> None:
    """Have the uncut model's share of the first look worked out, before anybody clicks."""

    def work(watch: Watch) -> None:
        look = first_look(windows_of(bench, ref, spec, handle))
        base_scores(bench, ref, handle).window(look.tokens[0], watch)

    # Where it cannot start, because too many jobs wait, whoever clicks does without it.
    bench.submit(JobContext(kind="prepare", ref=ref, evaluation=spec), f"Prepare {ref.id}", work, lane="inspect")


def start_inspect(
    bench: Service,
    ref: ModelRef,
    block: Block,
    spec: TextSpec,
    *,
    prompt: str,
    key: str | None,
    text_first: bool = False,
) -> str:
    """Measure what removing a block does: loss by windows, then both continuations; Inspection records stream out."""

    def work(watch: Watch) -> Inspection:
        handle = bench.models.load(ref, watch)
        from shortviz.model.prune import prune

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
        self, bench: Service, ref: ModelRef, block: Block, spec: TextSpec, prompt: str, key: str | None, watch: Watch
    ) -> None:
        self.bench, self.ref, self.block, self.spec, self.watch = bench, ref, block, spec, watch
        self.inspection = Inspection(prompt=prompt, evaluation=measured(bench, ref, spec, block))

    def score(self, handle: "ModelHandle", pruned: "ModelHandle", key: str | None) -> None:
        if (self.inspection.evaluation and self.inspection.evaluation.complete) or self.watch.stopped:
            return
        from shortviz.measure.losses import evaluate

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
        from shortviz.measure.generation import continue_text

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


def _kept(bench: Service, key: str | None, block: Block, fingerprint: str) -> Evaluation | None:
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


def measured(bench: Service, ref: ModelRef, spec: TextSpec, block: Block) -> Evaluation | None:
    """Return what was measured for a block on this text in this process, complete or not."""
    return bench.measured.get((ref, spec, block.layers))


def base_scores(bench: Service, ref: ModelRef, handle: "ModelHandle") -> "BaseScores":
    """Return the uncut model's kept results, which every block of the model shares."""
    from shortviz.measure.losses import BaseScores

    kept = bench.base_scores.get(ref)
    if kept is None or kept.handle is not handle:
        kept = bench.base_scores.put(ref, BaseScores(handle))
    return kept


# The app's work: each function puts one job on the bench and returns its id.
#
# The work runs in a background thread that may not call streamlit. Everything that needs torch is imported in there.

CPU_BATCH: Final = 2
"""Rows that hold the model at a time: the map redraws, a stop is heard and a clicked block gets its turn after each."""

GPU_BATCH: Final = 8


def start_estimate(bench: Service, ref: ModelRef) -> str:
    """Work out what loading would cost; the result is a ModelEstimate."""

    def work(watch: Watch) -> ModelEstimate:
        import_engine()
        from shortviz.model.load import estimate

        return estimate(ref)

    return bench.submit(JobContext(kind="estimate", ref=ref), f"Size of {ref.id}", work, lane="inspect")


def start_load(bench: Service, ref: ModelRef, spec: TextSpec) -> str:
    """Load the model, and have it ready for clicks that are scored on `spec`; the result is its ModelInfo."""

    def work(watch: Watch) -> ModelInfo:
        handle = bench.models.load(ref, watch)
        prepare(bench, ref, spec, handle)
        return handle.info

    return bench.submit(JobContext(kind="load", ref=ref), f"Load {ref.id}", work)


def start_measure(bench: Service, ref: ModelRef, spec: TextSpec, key: str) -> str:
    """Measure the distance map into run `key`; partial BlockDistances stream out, the result is the key."""

    def work(watch: Watch) -> str:
        measure_run(bench, ref, spec, key, watch)
        return key

    context = JobContext(kind="measure", ref=ref, run_key=key, calibration=spec)
    return bench.submit(context, f"Distances of {ref.id}", work)


def measure_run(bench: Service, ref: ModelRef, spec: TextSpec, key: str, watch: Watch) -> None:
    """Measure the distances on a text into run `key`; for background jobs only (torch is imported here)."""
    handle = bench.models.load(ref, watch)
    from shortviz.measure.distances import measure_distances
    from shortviz.model.delta import discard_checkpoint
    from shortviz.text.tokens import tokenize

    watch.tell("read text", done=0, total=1, unit="steps")
    tokens = tokenize(spec, handle.tokenizer)
    checkpoint = bench.runs.path(key) / f"measure-{tokens.info.fingerprint[:12]}.npz"
    distances = measure_distances(
        handle,
        tokens,
        batch_size=CPU_BATCH if handle.info.device == "cpu" else GPU_BATCH,
        checkpoint=checkpoint,
        watch=watch,
    )
    bench.runs.update(
        key, lambda old: replace(old or new_run(handle.info, tokens.info), text=tokens.info, distances=distances)
    )
    if distances.samples == len(tokens.rows):
        discard_checkpoint(checkpoint)


def first_row_tokens(ids: list[int], handle: "ModelHandle") -> tuple[str, ...]:
    """Return each token as the text it stands for."""
    return tuple(handle.tokenizer.decode([token]) for token in ids)


# The measured map as a job; torch is imported in the background thread.


def start_losses(bench: Service, ref: ModelRef, spec: TextSpec, key: str, known: Run | None) -> str:
    """Measure the loss of every block into run `key`; partial BlockLosses stream out, the result is the key.

    `known` is the run that is shown: its distances are kept beside the losses.
    """

    def work(watch: Watch) -> str:
        handle = bench.models.load(ref, watch)
        from shortviz.measure.loss_map import measure_losses

        windows = windows_of(bench, ref, spec, handle)
        checkpoint = bench.runs.path(key) / f"losses-{windows.info.fingerprint[:12]}.npz"
        losses = measure_losses(handle, windows, priority=bench.wanted_rows, checkpoint=checkpoint, watch=watch)
        bench.runs.update(key, lambda old: replace(old or known or new_run(handle.info, windows.info), losses=losses))
        if losses.complete:
            checkpoint.unlink(missing_ok=True)
        return key

    context = JobContext(kind="losses", ref=ref, run_key=key, evaluation=spec)
    return bench.submit(context, f"Losses of {ref.id}", work)


# Task accuracy and greedy removal as jobs; torch is imported in the background thread.


def rows_of(bench: Service, spec: TaskSpec, watch: Watch = NO_WATCH) -> TaskRows:
    """Return the questions, read once as long as their file stays as it is; raises TextError for a bad one."""
    from shortviz.text.questions import read_task

    file = Path(spec.value).expanduser()
    stamp = file.stat().st_mtime_ns if spec.kind == "file" and file.is_file() else 0
    return bench.questions.get((spec, stamp)) or bench.questions.put((spec, stamp), read_task(spec, watch=watch))


def fetched_rows(bench: Service, spec: TaskSpec) -> TaskRows | None:
    """Return the questions of a data set where they were fetched; asks no network."""
    return bench.questions.get((spec, 0))


def start_fetching(bench: Service, ref: ModelRef, spec: TaskSpec) -> str:
    """Fetch the questions of a data set, to be scored with this model; the result is their number."""

    def work(watch: Watch) -> int:
        watch.tell("fetch the questions", done=0, total=1, unit="steps")
        return len(rows_of(bench, spec, watch=watch).rows)

    context = JobContext(kind="questions", ref=ref, task=spec)
    return bench.submit(context, f"Questions of {spec.value}", work, lane="inspect")


def known_score(
    bench: Service, ref: ModelRef | None, run: Run | None, removed: tuple[int, ...], rows: TaskRows
) -> TaskScore | None:
    """Return the accuracy of a cut on these questions, measured in this process or kept in the run."""
    found = bench.tasks.get((ref, removed, rows.fingerprint)) if ref is not None else None
    return found or (run.task_of(removed, rows.fingerprint) if run is not None else None)


def model_score(
    bench: Service, ref: ModelRef, run: Run | None, model: "ModelHandle", spec: TaskSpec, *, watch: Watch
) -> TaskScore | None:
    """Return how many questions a model gets right; of untreated ones a score that is known. None after a stop.

    For background jobs: it runs the model. A known score without its answers is measured anew: no error of a difference
    could be given.
    """
    from shortviz.measure.tasks import whole_score

    rows = rows_of(bench, spec, watch=watch)
    removed = model.plan.removed if model.plan is not None else ()
    known = known_score(bench, ref, run, removed, rows) if not model.treatments else None
    if known is not None and (known.right or known.questions > MOST_PAIRED):
        return known
    found = whole_score(model, rows, watch=watch)
    if found is not None and not model.treatments:
        bench.tasks.put((ref, removed, rows.fingerprint), found)
    return found


def start_tasks(
    bench: Service, ref: ModelRef, spec: TaskSpec, plans: Sequence[tuple[int, ...]], key: str | None
) -> str:
    """Score the questions with each cut that has no score yet, into run `key`; the result is how many were scored."""

    def work(watch: Watch) -> int:
        watch.tell("read questions", done=0, total=1, unit="steps")
        rows = rows_of(bench, spec, watch=watch)
        handle = bench.models.load(ref, watch)
        from shortviz.measure.tasks import score_plans

        run = bench.runs.get(key) if key is not None else None
        left = [plan for plan in plans if known_score(bench, ref, run, plan, rows) is None]

        def keep(score: TaskScore) -> None:
            bench.tasks.put((ref, score.removed, rows.fingerprint), score)
            _add(bench, key, lambda run: with_task(run, score))

        if not left:
            return 0
        found = score_plans(handle, rows, left, on_score=keep, watch=watch)
        return len(found)

    context = JobContext(kind="tasks", ref=ref, run_key=key, task=spec, plans=tuple(plans))
    return bench.submit(context, f"Questions for {ref.id}", work)


def start_greedy(bench: Service, ref: ModelRef, spec: TextSpec, layers: int, key: str) -> str:
    """Remove so many layers one by one, on the windows of the run's measured map; the result is the run's key."""

    def work(watch: Watch) -> str:
        run = bench.runs.get(key)
        if run is None or run.losses is None:
            raise ShortvizError("Greedy removal is drawn beside the measured map; measure the losses first.")
        handle = bench.models.load(ref, watch)
        from shortviz.measure.search import greedy_removal
        from shortviz.text.tokens import make_windows

        text = run.losses.text
        size = WindowSpec(window=text.max_length or 2, windows=text.rows)
        windows = make_windows(spec, size, handle.tokenizer)
        if windows.info.fingerprint != text.fingerprint:
            raise ShortvizError(
                f"The map was measured on {text.source}, but the evaluation text is now {windows.info.source}; choose "
                "that text again, or measure the map anew."
            )
        found = greedy_removal(handle, windows, max_removed=layers, watch=watch)
        _add(bench, key, lambda old: replace(old, greedy=further(old.greedy, found)))
        return key

    context = JobContext(kind="greedy", ref=ref, run_key=key, evaluation=spec, layers=layers)
    return bench.submit(context, f"Greedy removal from {ref.id}", work)


def _add(bench: Service, key: str | None, change: Callable[[Run], Run]) -> None:
    """Add to the run where there is one; where strangers meet, the bundled run stays as it is."""
    if key is not None and not (key in EXAMPLES and settings().is_hosted):
        bench.runs.update(key, lambda run: change(run) if run is not None else None)


# Distances on several texts as one job, each into its own run; torch is imported in the background thread.


def start_texts(bench: Service, ref: ModelRef, specs: Sequence[TextSpec]) -> str:
    """Measure the distances on each text that has not been measured; the result is the keys of the runs."""

    def work(watch: Watch) -> tuple[str, ...]:
        keys: list[str] = []
        for number, spec in enumerate(specs, start=1):
            if watch.stopped:
                break
            key = run_key(ref, spec)
            known = bench.runs.get(key)
            if known is None or known.distances is None or known.distances.samples < known.text.rows:
                words = f"text {number} of {len(specs)}, {spec.value[:40]}"
                measure_run(bench, ref, spec, key, watch.labelled(detail=words, snapshot=None))
            keys.append(key)
        return tuple(keys)

    context = JobContext(kind="texts", ref=ref, texts=tuple(specs))
    return bench.submit(context, f"Distances of {ref.id} on {len(specs)} texts", work)
