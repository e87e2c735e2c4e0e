"""Exports as jobs: the cut model, or what a repair or a healing made of it, written and proved."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shortviz.errors import ExportError
from shortviz.progress import Watch
from shortviz.records.formatting import layers_text
from shortviz.records.measured import Evaluation, ExportReport
from shortviz.records.model import ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.records.text import TextSpec
from shortviz.service import kept as kept_models
from shortviz.service import policy
from shortviz.service.ledger import ledger_of
from shortviz.service.service import JobContext, Service
from shortviz.settings import settings

if TYPE_CHECKING:
    from shortviz.export.push import Destination, PushReport
    from shortviz.model.handle import ModelHandle


KEEP_DOWNLOAD_SECONDS: Final = 3600


def start_export(
    bench: Service, ref: ModelRef, removed: tuple[int, ...], folder: Path, *,
    methods: tuple[str, ...] = (), key: str | None, spec: TextSpec, archive: bool,
) -> str:  # fmt: skip
    """Write a cut model and prove it; the result is an ExportReport, of a zip file of the folder with `archive`.

    `methods` name the treatments after the cut of the model that is meant; it must still be in memory.
    """

    def work(watch: Watch) -> ExportReport:
        handle = bench.models.load(ref, watch)
        policy.check_export(settings(), handle.info.id, handle.info.parameters)
        from shortviz.export.export import export_checkpoint
        from shortviz.export.folder import zip_checkpoint

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
    bench: Service, ref: ModelRef, removed: tuple[int, ...], folder: Path, *,
    methods: tuple[str, ...], key: str, archive: bool,
) -> str:  # fmt: skip
    """Write what a healed model learned, alone, from what is kept beside run `key`; the result is where it is."""

    def work(watch: Watch) -> str:
        handle = bench.models.load(ref, watch)
        policy.check_export(settings(), handle.info.id, handle.info.parameters)
        from shortviz.export.folder import zip_checkpoint
        from shortviz.heal.adapter import export_adapter

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
    bench: Service, ref: ModelRef, removed: tuple[int, ...], methods: tuple[str, ...], handle: "ModelHandle"
) -> "ModelHandle":
    """Return the model that is meant; raises ExportError where a treated one is not in memory any more."""
    if methods:
        kept = bench.treated.get((ref, removed, methods))
        if kept is None:
            words = ", then ".join(method.replace("_", " ") for method in methods)
            raise ExportError(f"The model treated by {words} is not in memory any more; bring it back first.")
        return kept
    from shortviz.model.prune import prune

    return prune(handle, PrunePlan(num_layers=handle.info.num_layers, removed=removed))


def _evaluation(
    bench: Service, ref: ModelRef, removed: tuple[int, ...], methods: tuple[str, ...], key: str | None, spec: TextSpec
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


# Pushing an exported folder as a job. The token is in the work alone, and goes with it.


def start_push(bench: Service, ref: ModelRef, folder: Path, to: "Destination") -> str:
    """Push the folder to the hub; the result is a PushReport."""

    def work(watch: Watch) -> "PushReport":
        from shortviz.export.push import push_folder

        return push_folder(folder, to, watch=watch)

    context = JobContext(kind="push", ref=ref, folder=str(folder), target=to.repo_id)
    return bench.submit(context, f"Push to {to.repo_id}", work)
