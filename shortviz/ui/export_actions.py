"""Exports as jobs: the cut model, or what a repair or a healing made of it, written and proved."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shortviz import policy
from shortviz.errors import ExportError
from shortviz.progress import Watch
from shortviz.records import Evaluation, ExportReport, ModelRef, PrunePlan, TextSpec
from shortviz.settings import settings
from shortviz.ui import kept_models
from shortviz.ui.resources import Bench, JobContext
from shortviz.ui.treating import ledger_of
from shortviz.words import layers_text

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle

KEEP_DOWNLOAD_SECONDS: Final = 3600


def start_export(
    bench: Bench, ref: ModelRef, removed: tuple[int, ...], folder: Path, *,
    methods: tuple[str, ...] = (), key: str | None, spec: TextSpec, archive: bool,
) -> str:  # fmt: skip
    """Write a cut model and prove it; the result is an ExportReport, of a zip file of the folder with `archive`.

    `methods` name the treatments after the cut of the model that is meant; it must still be in memory.
    """

    def work(watch: Watch) -> ExportReport:
        handle = bench.models.load(ref, watch)
        policy.check_export(settings(), handle.info.id, handle.info.parameters)
        from shortviz.export import export_checkpoint, zip_checkpoint

        run = bench.runs.get(key) if key is not None else None
        report = export_checkpoint(
            _model(bench, ref, removed, methods, handle),
            folder,
            base_info=handle.info,
            text=run.text if run is not None else None,
            evaluation=_evaluation(bench, ref, removed, methods, key, spec),
            watch=watch,
        )
        _forget_downloads(folder)
        if not archive:
            return report
        target = folder.with_name(f"{folder.name}.zip")
        try:
            zip_checkpoint(folder, target, watch=watch)
        finally:
            shutil.rmtree(folder)
        return replace(report, folder=str(target))

    context = JobContext(kind="export", ref=ref, run_key=key, removed=removed, methods=methods, folder=str(folder))
    return bench.submit(context, f"Export without layers {layers_text(removed)}", work)


def start_adapter(
    bench: Bench, ref: ModelRef, removed: tuple[int, ...], folder: Path, *,
    methods: tuple[str, ...], key: str, archive: bool,
) -> str:  # fmt: skip
    """Write what a healed model learned, alone, from what is kept beside run `key`; the result is where it is."""

    def work(watch: Watch) -> str:
        handle = bench.models.load(ref, watch)
        policy.check_export(settings(), handle.info.id, handle.info.parameters)
        from shortviz.export import zip_checkpoint
        from shortviz.heal_adapter import export_adapter

        found = kept_models.adapter(bench, key, handle, removed, methods)
        watch.tell("write", done=0, total=1, unit="steps")
        export_adapter(found, folder, base=handle)
        _forget_downloads(folder)
        if not archive:
            return str(folder)
        target = folder.with_name(f"{folder.name}.zip")
        try:
            zip_checkpoint(folder, target, watch=watch)
        finally:
            shutil.rmtree(folder)
        return str(target)

    context = JobContext(kind="adapter", ref=ref, run_key=key, removed=removed, methods=methods, folder=str(folder))
    return bench.submit(context, f"Adapter for the cut of layers {layers_text(removed)}", work)


def _model(
    bench: Bench, ref: ModelRef, removed: tuple[int, ...], methods: tuple[str, ...], handle: "ModelHandle"
) -> "ModelHandle":
    """Return the model that is meant; raises ExportError where a treated one is not in memory any more."""
    if methods:
        kept = bench.treated.get((ref, removed, methods))
        if kept is None:
            words = ", then ".join(method.replace("_", " ") for method in methods)
            raise ExportError(f"The model treated by {words} is not in memory any more; bring it back first.")
        return kept
    from shortviz.pruning import prune

    return prune(handle, PrunePlan(num_layers=handle.info.num_layers, removed=removed))


def _evaluation(
    bench: Bench, ref: ModelRef, removed: tuple[int, ...], methods: tuple[str, ...], key: str | None, spec: TextSpec
) -> Evaluation | None:
    """Return what was measured of exactly this model, or None."""
    run = bench.runs.get(key) if key is not None else None
    if not methods:
        return bench.measured.get((ref, spec, removed)) or (run.evaluation_of(removed) if run is not None else None)
    ledger = ledger_of(run, removed)
    steps = [step for step in ledger.steps if step.methods == methods] if ledger is not None else []
    return steps[-1].evaluation if steps else None


def _forget_downloads(newest: Path) -> None:
    """Remove what was made for downloads more than an hour ago; where strangers could fill the disk, all but a few."""
    rooms = settings().downloads_dir
    if not newest.is_relative_to(rooms):
        return
    found = sorted((room for room in rooms.iterdir() if room != newest.parent), key=lambda room: -room.stat().st_mtime)
    kept = settings().max_downloads - 1 if settings().is_hosted else len(found)
    for place, old in enumerate(found):
        if place >= kept or time.time() - old.stat().st_mtime > KEEP_DOWNLOAD_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
