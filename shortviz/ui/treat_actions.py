"""Repair, heal and shrink as jobs: each adds to the ledger of its cut, and keeps the model that it made.

As in `actions`, the work runs in a background thread that may not call streamlit, and imports torch in there.
"""

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from shortviz.heal_settings import HealSettings
from shortviz.progress import Progress, Watch
from shortviz.records import ModelRef, PrunePlan, Run, TaskSpec, TextSpec, WindowSpec
from shortviz.ui.cut_work import REPAIR_BATCH, CutWork, Writer
from shortviz.ui.resources import Bench, JobContext
from shortviz.ui.treating import Treating
from shortviz.words import layers_text

if TYPE_CHECKING:
    from shortviz.ledger import Ledger

SHRINK_WINDOWS: Final = WindowSpec(window=256, windows=8)
"""What shrink chooses layers on: few, for every layer that is left is measured at every step."""


def start_repair(
    bench: Bench, ref: ModelRef, removed: tuple[int, ...], spec: TextSpec, training: TextSpec, *,
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
    bench: Bench, ref: ModelRef, removed: tuple[int, ...], spec: TextSpec, training: TextSpec, *,
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
    bench: Bench, ref: ModelRef, to_layers: int, spec: TextSpec, training: TextSpec, *,
    method: str, key: str, known: Run | None, prompt: str, task: TaskSpec | None = None,
) -> str:  # fmt: skip
    """Remove the layer that costs least, repair, measure again, and so on; the result is a Treating of the last cut.

    Layers are chosen and repairs fitted on the training text; the ledger is scored on the evaluation text, which took
    no part. A stop keeps what is done, and scores it.
    """

    def work(watch: Watch) -> Treating:
        handle = bench.models.load(ref, watch)
        from shortviz.fit_text import fit_rows
        from shortviz.shrink import shrink
        from shortviz.texts import make_windows

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
    bench: Bench, ref: ModelRef, removed: tuple[int, ...], ledger: "Ledger | None", prompt: str
) -> str:
    """Let every model of a ledger that is in memory continue the prompt, the uncut and the cut one always."""

    def work(watch: Watch) -> None:
        handle = bench.models.load(ref, watch)
        from shortviz.pruning import prune

        writer = Writer(bench, context, watch)
        writer.write("uncut", handle, (), ())
        writer.write("cut", prune(handle, PrunePlan(num_layers=handle.info.num_layers, removed=removed)), removed, ())
        for step in ledger.steps if ledger is not None else ():
            kept = bench.treated.get((ref, removed, step.methods)) if step.methods else None
            if kept is not None:
                writer.write(step.name, kept, removed, step.methods)

    context = JobContext(kind="continuations", ref=ref, removed=removed, prompt=prompt)
    return bench.submit(context, "Continuations of the prompt", work, lane="inspect")
