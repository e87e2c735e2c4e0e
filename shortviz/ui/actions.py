"""The app's work: each function puts one job on the bench and returns its id.

The work runs in a background thread that may not call streamlit. Everything that needs torch is imported in there.
"""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shortviz import policy
from shortviz.job_state import JobControl
from shortviz.records import (
    Block,
    Evaluation,
    ExportReport,
    ModelEstimate,
    ModelInfo,
    ModelRef,
    Progress,
    PrunePlan,
    TextSpec,
    WindowSpec,
)
from shortviz.runs import new_run
from shortviz.settings import settings
from shortviz.ui.measured import from_map
from shortviz.ui.resources import Bench, JobContext
from shortviz.ui.shelves import Inspection

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle
    from shortviz.losses import BaseScores
    from shortviz.records import WindowSet

APP_WINDOWS: Final = WindowSpec(window=256, windows=32)
"""Small windows: the first numbers come soon, and there are enough of them for an error bar."""

WINDOWS_BEFORE_TEXT: Final = 3
"""The first numbers come before the continuations, the rest of the windows after."""

NEW_TOKENS: Final = 32

KEEP_DOWNLOAD_SECONDS: Final = 3600

CPU_BATCH: Final = 2
"""Rows that hold the model at a time: the map redraws, a stop is heard and a clicked block gets its turn after each."""

GPU_BATCH: Final = 8


def start_estimate(bench: Bench, ref: ModelRef) -> str:
    """Work out what loading would cost; the result is a ModelEstimate."""

    def work(control: JobControl) -> ModelEstimate:
        from shortviz.loading import estimate

        return estimate(ref)

    return bench.submit(JobContext(kind="estimate", ref=ref), f"Size of {ref.id}", work, lane="inspect")


def start_load(bench: Bench, ref: ModelRef) -> str:
    """Load the model; the result is its ModelInfo."""

    def work(control: JobControl) -> ModelInfo:
        return bench.models.load(ref, control).info

    return bench.submit(JobContext(kind="load", ref=ref), f"Load {ref.id}", work)


def start_measure(bench: Bench, ref: ModelRef, spec: TextSpec, key: str) -> str:
    """Measure the distance map into run `key`; partial BlockDistances stream out, the result is the key."""

    def work(control: JobControl) -> str:
        measure_run(bench, ref, spec, key, control)
        return key

    context = JobContext(kind="measure", ref=ref, run_key=key, calibration=spec)
    return bench.submit(context, f"Distances of {ref.id}", work)


def measure_run(bench: Bench, ref: ModelRef, spec: TextSpec, key: str, control: JobControl) -> None:
    """Measure the distances on a text into run `key`; for background jobs only (torch is imported here)."""
    handle = bench.models.load(ref, control)
    from shortviz.checkpoint import discard_checkpoint
    from shortviz.distances import measure_distances
    from shortviz.texts import tokenize

    control.on_progress(Progress(stage="read text", done=0, total=1, unit="steps"))
    tokens = tokenize(spec, handle.tokenizer)
    checkpoint = bench.runs.path(key) / f"measure-{tokens.info.fingerprint[:12]}.npz"
    distances = measure_distances(
        handle,
        tokens,
        batch_size=CPU_BATCH if handle.info.device == "cpu" else GPU_BATCH,
        checkpoint=checkpoint,
        on_progress=control.on_progress,
        stop=control.stop,
    )
    bench.runs.update(
        key, lambda old: replace(old or new_run(handle.info, tokens.info), text=tokens.info, distances=distances)
    )
    if distances.samples == len(tokens.rows):
        discard_checkpoint(checkpoint)


def windows_of(bench: Bench, ref: ModelRef, spec: TextSpec, handle: "ModelHandle") -> "WindowSet":
    """Return the app's evaluation windows of a text, cut once per process."""
    from shortviz.texts import make_windows

    return bench.windows.get((ref, spec)) or bench.windows.put(
        (ref, spec), make_windows(spec, APP_WINDOWS, handle.tokenizer)
    )


def start_inspect(
    bench: Bench, ref: ModelRef, block: Block, spec: TextSpec, *, prompt: str, key: str | None, text_first: bool = False
) -> str:
    """Measure what removing a block does: loss by windows, then both continuations; Inspection records stream out."""

    def work(control: JobControl) -> Inspection:
        handle = bench.models.load(ref, control)
        from shortviz.pruning import prune

        pruned = prune(handle, PrunePlan.of_blocks(handle.info.num_layers, block))
        found = _Found(bench, ref, block, spec, prompt, key, control)
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
        self,
        bench: Bench,
        ref: ModelRef,
        block: Block,
        spec: TextSpec,
        prompt: str,
        key: str | None,
        control: JobControl,
    ) -> None:
        self.bench, self.ref, self.block, self.spec, self.control = bench, ref, block, spec, control
        self.inspection = Inspection(prompt=prompt, evaluation=measured(bench, ref, spec, block))

    def score(self, handle: "ModelHandle", pruned: "ModelHandle", key: str | None) -> None:
        if (self.inspection.evaluation and self.inspection.evaluation.complete) or self.control.stop.is_set():
            return
        from shortviz.losses import evaluate

        windows = windows_of(self.bench, self.ref, self.spec, handle)
        kept = _kept(self.bench, key, self.block, windows.info.fingerprint)
        if kept is not None:
            self._keep(kept)
            return

        def on_progress(progress: Progress) -> None:
            self._evaluating(progress)
            if progress.done == WINDOWS_BEFORE_TEXT:  # between two windows: the model is free
                self.write(handle, pruned)

        done = evaluate(
            pruned,
            windows,
            base=handle,
            base_scores=base_scores(self.bench, self.ref, handle),
            on_progress=on_progress,
            stop=self.control.stop,
        )
        self._keep(done)
        if done.complete and key is not None:
            self.bench.runs.add_evaluation(key, done)

    def write(self, handle: "ModelHandle", pruned: "ModelHandle") -> None:
        prompt = self.inspection.prompt
        if not prompt.strip():
            return
        for name, model, removed in (("uncut", handle, ()), ("cut", pruned, self.block.layers)):
            if self.control.stop.is_set():
                return
            text = self.bench.continuations.get((self.ref, removed, prompt))
            if text is None:
                text = self._continue(name, model, prompt)
                if not self.control.stop.is_set():
                    self.bench.continuations.put((self.ref, removed, prompt), text)
            self._show_text(name, text, NEW_TOKENS)

    def _continue(self, name: str, model: "ModelHandle", prompt: str) -> str:
        from shortviz.generation import continue_text

        written: list[str] = []

        def on_text(piece: str) -> None:
            written.append(piece)
            self._show_text(name, "".join(written), len(written))

        return continue_text(
            model,
            prompt,
            max_new_tokens=min(NEW_TOKENS, settings().max_new_tokens),
            on_text=on_text,
            stop=self.control.stop,
        )

    def _show_text(self, name: str, text: str, tokens: int) -> None:
        self.inspection = (
            replace(self.inspection, uncut=text) if name == "uncut" else replace(self.inspection, cut=text)
        )
        shown = self.inspection
        self.control.on_progress(
            Progress(stage=f"write, {name}", done=tokens, total=NEW_TOKENS, unit="tokens", snapshot=lambda: shown)
        )

    def _evaluating(self, progress: Progress) -> None:
        def snapshot() -> Inspection:
            if progress.snapshot is not None:
                self._keep(progress.snapshot())
            return self.inspection

        self.control.on_progress(replace(progress, snapshot=snapshot))

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


def start_export(
    bench: Bench, ref: ModelRef, block: Block, folder: Path, *, key: str | None, spec: TextSpec, archive: bool
) -> str:
    """Write the cut model and prove it; the result is an ExportReport, of a zip file of the folder with `archive`."""

    def work(control: JobControl) -> ExportReport:
        handle = bench.models.load(ref, control)
        policy.check_export(settings(), handle.info.id, handle.info.parameters)
        from shortviz.export import export_checkpoint, zip_checkpoint
        from shortviz.pruning import prune

        pruned = prune(handle, PrunePlan.of_blocks(handle.info.num_layers, block))
        run = bench.runs.get(key) if key is not None else None
        evaluation = measured(bench, ref, spec, block) or (run.evaluation_of(block.layers) if run else None)
        report = export_checkpoint(
            pruned,
            folder,
            base_info=handle.info,
            text=run.text if run is not None else None,
            evaluation=evaluation,
            on_progress=control.on_progress,
            stop=control.stop,
        )
        if not archive:
            return report
        _forget_downloads(folder.parent)
        target = folder.with_name(f"{folder.name}.zip")
        try:
            zip_checkpoint(folder, target, on_progress=control.on_progress, stop=control.stop)
        finally:
            shutil.rmtree(folder)
        return replace(report, folder=str(target))

    context = JobContext(kind="export", ref=ref, run_key=key, block=block, folder=str(folder))
    return bench.submit(context, f"Export without {block}", work)


def _forget_downloads(newest: Path) -> None:
    """Remove the archives that were made for downloads more than an hour ago."""
    for old in newest.parent.iterdir():
        if old != newest and time.time() - old.stat().st_mtime > KEEP_DOWNLOAD_SECONDS:
            shutil.rmtree(old, ignore_errors=True)


def first_row_tokens(ids: list[int], handle: "ModelHandle") -> tuple[str, ...]:
    """Return each token as the text it stands for."""
    return tuple(handle.tokenizer.decode([token]) for token in ids)
