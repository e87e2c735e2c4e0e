"""Exports: a cut model, or what a repair or a healing made of it, written and proved; the adapter alone; a push."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shortviz.errors import ExportError, ModelError, PlanError, ResourceError, RunError
from shortviz.progress import Watch
from shortviz.records.ledger import LedgerStep
from shortviz.records.measured import ExportReport
from shortviz.records.model import STORED, ModelInfo, ModelRef, OutDtype
from shortviz.records.plan import PrunePlan
from shortviz.records.run import Run
from shortviz.records.text import WindowSpec
from shortviz.service import inspect, kept, measure, policy
from shortviz.service.ledger import known_ledger, ledger_of, refuse_not_better, verdict
from shortviz.service.place import Place
from shortviz.service.requests import ExportRequest, PushRequest, check_device
from shortviz.settings import settings
from shortviz.text.tokens import DEFAULT_EVALUATION

if TYPE_CHECKING:
    from shortviz.export.push import PushReport
    from shortviz.model.handle import ModelHandle
    from shortviz.service.service import Service

KEEP_DOWNLOAD_SECONDS: Final = 3600
QUANTISING: Final = WindowSpec(window=256, windows=8)
"""Windows of the built-in evaluation text, on which is measured what quantising a treated model's weights costs."""


def export(request: ExportRequest, service: "Service", place: Place, watch: Watch) -> ExportReport | str:
    """Write a model and return the report of its proof, or where what was learned alone was written.

    Streamed, the tensors are copied from file to file in the dtype they have, and the model is never whole in memory.
    """
    from shortviz.export.folder import check_target, is_gguf

    folder = Path(request.folder).expanduser()
    check_target(folder)
    if request.adapter is not None and request.stream:
        raise PlanError("An adapter is merged in memory, so it cannot be streamed; leave one of them out.")
    if request.methods and request.removal is None:
        raise PlanError("Nothing says of which cut a treated model is; give the layers that it lacks.")
    check_device(request, "An export, which can be streamed,")
    if request.methods and request.removal is not None:
        made = ledger_of(_run(request, service, place), request.removal.removed)
        refuse_not_better(made, request.methods, request.anyway)
    if request.gate.max_nll_increase is not None:  # a bad text is told before minutes are spent on loading a model
        measure.read_early(request.text)
    if request.task is not None:
        measure.rows_of(service, request.task, watch)
    if is_gguf(folder):
        return replace(_gguf(request, service, place, watch, folder), folder=str(folder.absolute()))
    whole = request.removal is None or request.adapter is not None or request.methods
    with _zipped(folder, request.archive, watch) as target:
        if not whole and request.out_dtype == STORED and measure.streams(service, request.model, request.stream, watch):
            from shortviz.streaming.export import export_streamed

            assert request.removal is not None
            judged = inspect.let_through(request, service, place, watch)
            report = export_streamed(request.model, request.removal.of, folder, watch=watch)
            done: ExportReport | str = replace(report, gate=judged)
        else:
            removal = request.removal
            base = service.models.load(request.model, watch, removal.of if removal is not None else None)
            policy.check_export(settings(), base.info.id, base.info.parameters)
            write = _adapter if request.adapter_only else _checkpoint
            done = write(request, service, place, watch, base, folder)
    return str(target) if isinstance(done, str) else replace(done, folder=str(target))


def came_as_gguf(ref: ModelRef) -> bool:
    """Return whether a model is a GGUF file of this machine, which can be cut as one; nobody is asked for it."""
    from shortviz.model.files import DEMO, demo_gguf, find_files

    if ref.id == DEMO:
        return demo_gguf() is not None
    try:
        return Path(ref.id).expanduser().exists() and find_files(ref).gguf is not None
    except (ModelError, OSError):
        return False


def out_sizes(model: ModelInfo, plan: PrunePlan, handle: "ModelHandle | None") -> dict[OutDtype, int]:
    """Return about how many bytes the weights of a cut take in the files, by what they are written in.

    As stored, that is known of a loaded model's `handle`; before, its bytes in memory stand there.
    """
    parameters, in_memory, _ = model.sizes(plan.removed)
    left, memory = model.parameters - parameters, model.bytes - in_memory
    stored = memory
    if handle is not None:  # then the engine is there; without, a page must not import it beside the background thread
        from shortviz.export.weights import stored_bytes

        with suppress(ModelError):  # its files are gone; the export says so
            stored = stored_bytes(handle, memory)
    return {STORED: stored, "float32": 4 * left, "bfloat16": 2 * left, "float16": 2 * left}


def _gguf(request: ExportRequest, service: "Service", place: Place, watch: Watch, target: Path) -> ExportReport:
    """Write a GGUF file of a model that came as one, with its tensors as they are; no folder, no zip, no adapter."""
    from shortviz.export.gguf import export_gguf, gguf_source
    from shortviz.model.gguf.blocks import cut_keys
    from shortviz.text.tokens import make_windows

    if request.archive or request.adapter_only:
        what = "a zip file" if request.archive else "an adapter alone"
        raise ExportError(f"{target.name} is the name of a GGUF file, and {what} was asked for; give another name.")
    source, removal = gguf_source(request.model), request.removal
    policy.check_export(settings(), request.model.id, source.parameters)
    plan = removal.of(source.num_layers) if removal is not None else None
    if plan is not None:
        cut_keys(source, plan)  # what cannot be written is refused before anything is loaded
    treated = bool(request.methods) or request.adapter is not None
    if plan is not None and not treated and _too_large(request, service, watch):
        judged = inspect.let_through(request, service, place, watch)
        done = export_gguf(source, target, plan, watch=watch)
    else:
        base = service.models.load(request.model, watch, removal.of if removal is not None else None)
        step = _step(_run(request, service, place), request, request.methods)
        model = _model(request, service, place, base, step)
        judged = inspect.let_through(request, service, place, watch, base, model)
        length = min(QUANTISING.window, base.info.context_length or QUANTISING.window)
        windows = make_windows(DEFAULT_EVALUATION, replace(QUANTISING, window=length), base.tokenizer)
        done = export_gguf(
            source, target, model.whole_plan, pruned=model, base=base, windows=windows if treated else None,
            watch=watch,
        )  # fmt: skip
    _forget_downloads(target)
    return replace(done, gate=judged)


def _too_large(request: ExportRequest, service: "Service", watch: Watch) -> bool:
    """Return whether the model is not run, only its bytes compared: as asked, else where it would not fit."""
    if request.stream is not None:
        return request.stream
    try:
        fits, because = service.models.estimate(request.model).fits, ""
    except ResourceError as error:
        fits, because = False, f" {error}"
    if not fits:
        watch.say(f"The model does not fit in memory: its bytes are copied and compared, nothing is run.{because}")
    return not fits


@contextmanager
def _zipped(folder: Path, archive: bool, watch: Watch) -> Iterator[Path]:
    """Yield where what is written into a folder ends up: there, or in a zip file beside it that takes its place."""
    target = folder.with_name(f"{folder.name}.zip") if archive else folder
    if archive and target.exists():
        raise ExportError(f"{target} is there already; choose another folder.")
    yield target.absolute()
    _forget_downloads(folder)
    if not archive:
        return
    from shortviz.export.folder import zip_checkpoint

    zip_checkpoint(folder, target, watch=watch)
    shutil.rmtree(folder)  # only once the zip file has it all


def _checkpoint(
    request: ExportRequest, service: "Service", place: Place, watch: Watch, base: "ModelHandle", folder: Path
) -> ExportReport:
    from shortviz.export.export import export_checkpoint

    run = _run(request, service, place)
    step = _step(run, request, request.methods)
    model = _model(request, service, place, base, step)
    evaluation = step.evaluation if step is not None else None
    words = verdict(ledger_of(run, request.removal.removed), request.methods) if request.removal is not None else ""
    if not request.methods and request.adapter is None:
        known = known_ledger(service, request.model, run, model.removed, DEFAULT_EVALUATION)
        cut = run.evaluation_of(model.removed) if run is not None else None
        evaluation = cut or (known.steps[1].evaluation if known is not None else None)
    judged = inspect.let_through(request, service, place, watch, base, model)
    report = export_checkpoint(
        model,
        folder,
        base_info=base.info,
        text=run.text if run is not None and run.distances is not None else None,
        evaluation=evaluation,
        command=_command(step, words),
        verdict=words,
        out_dtype=request.out_dtype,
        ledger=ledger_of(run, model.removed),
        watch=watch,
    )
    return replace(report, gate=judged)


def _command(step: LedgerStep | None, words: str) -> str:
    """Return what makes a treated model again, which writes it only when told to where it is no better."""
    return "" if step is None or not step.command else f"{step.command}{' --anyway' if words else ''}"


def _adapter(
    request: ExportRequest, service: "Service", place: Place, watch: Watch, base: "ModelHandle", folder: Path
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


def _run(request: ExportRequest, service: "Service", place: Place) -> Run | None:
    found = service.runs.get(request.run) if request.run is not None else place.run
    if request.run is not None and found is None:
        raise RunError(f"There is no run {request.run!r} that keeps models; runs are in {service.runs.folder}.")
    return found


def _step(run: Run | None, request: ExportRequest, methods: tuple[str, ...]) -> LedgerStep | None:
    """Return the ledger's step of a treated model; None for the cut itself, and where there is no ledger."""
    ledger = ledger_of(run, request.removal.removed) if request.removal is not None else None
    return ledger.treated(methods) if ledger is not None else None


def _model(
    request: ExportRequest, service: "Service", place: Place, base: "ModelHandle", step: LedgerStep | None
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


def push(request: PushRequest, service: "Service", place: Place, watch: Watch) -> "PushReport":
    """Push a proved folder to the hub, with the token that the place was given: it stands in no record."""
    from shortviz.export.push import Destination, push_folder

    to = Destination(repo_id=request.repo_id, token=place.token, private=request.private)
    return push_folder(Path(request.folder), to, watch=watch)
