"""Exports: a cut model, or what a repair or a healing made of it, written and proved; the adapter alone; a push."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shortviz.errors import ExportError, PlanError, RunError
from shortviz.progress import Watch
from shortviz.records.ledger import LedgerStep
from shortviz.records.measured import ExportReport
from shortviz.records.run import Run
from shortviz.service import inspect, kept, measure, policy
from shortviz.service.ledger import known_ledger, ledger_of
from shortviz.service.place import Place
from shortviz.service.requests import ExportRequest, PushRequest, check_device
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.text.tokens import DEFAULT_EVALUATION

if TYPE_CHECKING:
    from shortviz.export.push import PushReport
    from shortviz.model.handle import ModelHandle

KEEP_DOWNLOAD_SECONDS: Final = 3600


def export(request: ExportRequest, service: Service, place: Place, watch: Watch) -> ExportReport | str:
    """Write a model and return the report of its proof, or where what was learned alone was written.

    Streamed, the tensors are copied from file to file in the dtype they have, and the model is never whole in memory.
    """
    from shortviz.export.folder import check_target

    folder = Path(request.folder).expanduser()
    check_target(folder)
    if request.adapter is not None and request.stream:
        raise PlanError("An adapter is merged in memory, so it cannot be streamed; leave one of them out.")
    if request.methods and request.removal is None:
        raise PlanError("Nothing says of which cut a treated model is; give the layers that it lacks.")
    check_device(request, "An export, which can be streamed,")
    whole = request.removal is None or request.adapter is not None or request.methods
    with _zipped(folder, request.archive, watch) as target:
        if not whole and measure.streams(service, request.model, request.stream, watch):
            from shortviz.streaming.export import export_streamed

            assert request.removal is not None
            done: ExportReport | str = export_streamed(request.model, request.removal.of, folder, watch=watch)
        else:
            removal = request.removal
            base = service.models.load(request.model, watch, removal.of if removal is not None else None)
            policy.check_export(settings(), base.info.id, base.info.parameters)
            made = _adapter if request.adapter_only else _checkpoint
            done = made(request, service, place, watch, base, folder)
    return str(target) if isinstance(done, str) else replace(done, folder=str(target))


@contextmanager
def _zipped(folder: Path, archive: bool, watch: Watch) -> Iterator[Path]:
    """Yield where what is written into a folder ends up: there, or in a zip file beside it that takes its place."""
    target = folder.with_name(f"{folder.name}.zip") if archive else folder
    yield target.absolute()
    _forget_downloads(folder)
    if not archive:
        return
    from shortviz.export.folder import zip_checkpoint

    try:
        zip_checkpoint(folder, target, watch=watch)
    finally:
        shutil.rmtree(folder)


def _checkpoint(
    request: ExportRequest, service: Service, place: Place, watch: Watch, base: "ModelHandle", folder: Path
) -> ExportReport:
    from shortviz.export.export import export_checkpoint

    run = _run(request, service, place)
    step = _step(run, request, request.methods)
    model = _model(request, service, place, base, step)
    removed = model.plan.removed if model.plan is not None else ()
    evaluation = step.evaluation if step is not None else None
    if not request.methods and request.adapter is None:
        known = known_ledger(service, request.model, run, removed, DEFAULT_EVALUATION)
        cut = run.evaluation_of(removed) if run is not None else None
        evaluation = cut or (known.steps[1].evaluation if known is not None else None)
    return export_checkpoint(
        model,
        folder,
        base_info=base.info,
        text=run.text if run is not None and run.distances is not None else None,
        evaluation=evaluation,
        command=step.command if step is not None else "",
        watch=watch,
    )


def _adapter(
    request: ExportRequest, service: Service, place: Place, watch: Watch, base: "ModelHandle", folder: Path
) -> str:
    from shortviz.heal.adapter import export_adapter

    assert request.removal is not None, "a treated model is a cut one"
    removed, methods = request.removal.removed, request.methods
    found = service.adapters.get((request.model, removed, methods))
    if found is None:
        key = kept.kept_by(service, _keys(request, place), removed, methods)
        if key is None:
            raise RunError("Nothing of this model is kept beside the run; repair or heal again.")
        found = kept.adapter(service, key, base, removed, methods)
    before = _step(_run(request, service, place), request, methods[:-1])
    watch.tell("write", done=0, total=1, unit="steps")
    export_adapter(found, folder, base=base, command=before.command if before is not None else "")
    return str(folder)


def _keys(request: ExportRequest, place: Place) -> tuple[str, ...]:
    return place.keys if request.run is None else (request.run, *place.keys)


def _run(request: ExportRequest, service: Service, place: Place) -> Run | None:
    found = service.runs.get(request.run) if request.run is not None else place.run
    if request.run is not None and found is None:
        raise RunError(f"There is no run {request.run!r} that keeps models; runs are in {service.runs.folder}.")
    return found


def _step(run: Run | None, request: ExportRequest, methods: tuple[str, ...]) -> LedgerStep | None:
    """Return the ledger's step of a treated model; None for the cut itself, and where there is no ledger."""
    ledger = ledger_of(run, request.removal.removed) if methods and request.removal is not None else None
    found = [step for step in ledger.steps if step.methods == methods] if ledger is not None else []
    return found[-1] if found else None


def _model(
    request: ExportRequest, service: Service, place: Place, base: "ModelHandle", step: LedgerStep | None
) -> "ModelHandle":
    """Return the model that is meant: a treated one from memory, else brought back from beside its run."""
    if not request.methods:
        return inspect.cut_model(base, request.removal, request.adapter)
    assert request.removal is not None
    removed = request.removal.removed
    found = service.treated.get((request.model, removed, request.methods))
    key = kept.kept_by(service, _keys(request, place), removed, request.methods)
    if found is None and key is not None and step is not None:
        found = kept.bring_back(service, key, base, removed, step)
    if found is None:
        words = ", then ".join(method.replace("_", " ") for method in request.methods)
        raise ExportError(f"The model treated by {words} is neither in memory nor kept beside a run; make it again.")
    return found


def _forget_downloads(newest: Path) -> None:
    """Remove what was made for downloads more than an hour ago; where strangers could fill the disk, all but a few."""
    rooms = settings().downloads_dir
    if not newest.is_relative_to(rooms):
        return
    found = sorted((room for room in rooms.iterdir() if room != newest.parent), key=lambda room: -room.stat().st_mtime)
    most = policy.most_downloads(settings(), len(found))
    for place, old in enumerate(found):
        if place >= most or time.time() - old.stat().st_mtime > KEEP_DOWNLOAD_SECONDS:
            shutil.rmtree(old, ignore_errors=True)


def push(request: PushRequest, service: Service, place: Place, watch: Watch) -> "PushReport":
    """Push a proved folder to the hub, with the token that the place was given: it stands in no record."""
    from shortviz.export.push import Destination, push_folder

    to = Destination(repo_id=request.repo_id, token=place.token, private=request.private)
    return push_folder(Path(request.folder), to, watch=watch)
