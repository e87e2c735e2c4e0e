"""Task accuracy and greedy removal as jobs; torch is imported in the background thread."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shortviz.curve import further
from shortviz.errors import ShortvizError
from shortviz.progress import NO_WATCH, Watch
from shortviz.records import ModelRef, Run, TaskRows, TaskScore, TaskSpec, TextSpec, WindowSpec
from shortviz.runs import EXAMPLES, with_task
from shortviz.settings import settings
from shortviz.task_records import MOST_PAIRED
from shortviz.ui.resources import Bench, JobContext

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle


def rows_of(bench: Bench, spec: TaskSpec, watch: Watch = NO_WATCH) -> TaskRows:
    """Return the questions, read once as long as their file stays as it is; raises TextError for a bad one."""
    from shortviz.task_rows import read_task

    file = Path(spec.value).expanduser()
    stamp = file.stat().st_mtime_ns if spec.kind == "file" and file.is_file() else 0
    return bench.questions.get((spec, stamp)) or bench.questions.put((spec, stamp), read_task(spec, watch=watch))


def fetched_rows(bench: Bench, spec: TaskSpec) -> TaskRows | None:
    """Return the questions of a data set where they were fetched; asks no network."""
    return bench.questions.get((spec, 0))


def start_fetching(bench: Bench, ref: ModelRef, spec: TaskSpec) -> str:
    """Fetch the questions of a data set, to be scored with this model; the result is their number."""

    def work(watch: Watch) -> int:
        watch.tell("fetch the questions", done=0, total=1, unit="steps")
        return len(rows_of(bench, spec, watch=watch).rows)

    context = JobContext(kind="questions", ref=ref, task=spec)
    return bench.submit(context, f"Questions of {spec.value}", work, lane="inspect")


def known_score(
    bench: Bench, ref: ModelRef | None, run: Run | None, removed: tuple[int, ...], rows: TaskRows
) -> TaskScore | None:
    """Return the accuracy of a cut on these questions, measured in this process or kept in the run."""
    found = bench.tasks.get((ref, removed, rows.fingerprint)) if ref is not None else None
    return found or (run.task_of(removed, rows.fingerprint) if run is not None else None)


def model_score(
    bench: Bench, ref: ModelRef, run: Run | None, model: "ModelHandle", spec: TaskSpec, *, watch: Watch
) -> TaskScore | None:
    """Return how many questions a model gets right; of untreated ones a score that is known. None after a stop.

    For background jobs: it runs the model. A known score without its answers is measured anew: no error of a difference
    could be given.
    """
    from shortviz.tasks import whole_score

    rows = rows_of(bench, spec, watch=watch)
    removed = model.plan.removed if model.plan is not None else ()
    known = known_score(bench, ref, run, removed, rows) if not model.treatments else None
    if known is not None and (known.right or known.questions > MOST_PAIRED):
        return known
    found = whole_score(model, rows, watch=watch)
    if found is not None and not model.treatments:
        bench.tasks.put((ref, removed, rows.fingerprint), found)
    return found


def start_tasks(bench: Bench, ref: ModelRef, spec: TaskSpec, plans: Sequence[tuple[int, ...]], key: str | None) -> str:
    """Score the questions with each cut that has no score yet, into run `key`; the result is how many were scored."""

    def work(watch: Watch) -> int:
        watch.tell("read questions", done=0, total=1, unit="steps")
        rows = rows_of(bench, spec, watch=watch)
        handle = bench.models.load(ref, watch)
        from shortviz.curve_scoring import score_plans

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


def start_greedy(bench: Bench, ref: ModelRef, spec: TextSpec, layers: int, key: str) -> str:
    """Remove so many layers one by one, on the windows of the run's measured map; the result is the run's key."""

    def work(watch: Watch) -> str:
        run = bench.runs.get(key)
        if run is None or run.losses is None:
            raise ShortvizError("Greedy removal is drawn beside the measured map; measure the losses first.")
        handle = bench.models.load(ref, watch)
        from shortviz.greedy import greedy_removal
        from shortviz.texts import make_windows

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


def _add(bench: Bench, key: str | None, change: Callable[[Run], Run]) -> None:
    """Add to the run where there is one; where strangers meet, the bundled run stays as it is."""
    if key is not None and not (key in EXAMPLES and settings().is_hosted):
        bench.runs.update(key, lambda run: change(run) if run is not None else None)
