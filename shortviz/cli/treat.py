"""The commands that cut a model and work on the cut: `shortviz prune | repair | shrink | heal | evidence`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortviz.analysis.evidence import notes
from shortviz.cli.options import ExportOption, JsonOption, OutOption
from shortviz.cli.session import INTERRUPTED, how_to_go_on, print_result, warn_same_text, working
from shortviz.errors import FieldError, GateError, PlanError, ShortvizError, Stopped
from shortviz.records.plan import Removal
from shortviz.service.execute import execute, new_service
from shortviz.service.place import WrittenPlace
from shortviz.service.requests import EvidenceRequest, ExportRequest, HealRequest, RepairRequest, ShrinkRequest

if TYPE_CHECKING:
    from shortviz.records.heal import HealHistory
    from shortviz.records.measured import ExportReport
    from shortviz.service.ledger import Treating

Done = tuple["Treating | None", "ExportReport | None"]


def repair(
    request: RepairRequest, out: OutOption = None, export: ExportOption = None, as_json: JsonOption = False
) -> None:
    """Remove layers, repair the seam, compare on the same windows; with --export, write and prove it.

    The text options say what is fitted on, --eval-... what is scored on, --tasks which questions the uncut, the cut and
    the repaired model are asked.
    """
    from shortviz.cli.output import export_json, ledger_text

    check_folders(out=out, export=export)
    place = WrittenPlace(out, export)
    found, report = _made(request, place)
    assert found is not None, "this is one process"
    assert found.treatment is not None, "a repair was tried"
    note = found.treatment.note if found.applied else f"Nothing was changed. {found.treatment.note}"
    if as_json:
        told = {"applied": found.applied, "verdict": found.verdict, "note": note, "ledger": found.ledger}
        print_result(told | {"export": export_json(report)})
    else:
        assert found.ledger is not None, "the cut was scored"
        unsaid = [] if found.applied else [note]  # the ledger has the note of a repair that was applied
        print_result("\n".join([ledger_text(found.ledger), *unsaid, *_kept_line(out), *_report_lines(report)]))
    _refuse_not_better(found, request, place, export)


def shrink(
    request: ShrinkRequest, out: OutOption = None, export: ExportOption = None, as_json: JsonOption = False
) -> None:
    """Remove the layer that costs least, repair, measure again, and so on; with --export, write the result, proved.

    The text options say what is fitted on, --eval-... what the layers are chosen on, --tasks which questions the uncut,
    the cut and the final model are asked. Ctrl-C keeps what is done, and the same command then goes on.
    """
    from shortviz.cli.output import export_json

    check_folders(out=out, export=export)
    place = WrittenPlace(out, export)
    found, report = _made(request, place)
    assert found is not None, "this is one process"
    assert place.run is not None, "the ledger is in it"
    layers = place.run.model.num_layers - len(found.removed)
    lines = [_shrink_text(found, layers), *_kept_line(out), *_report_lines(report)]
    names = ("complete", "verdict", "note", "base_nll", "steps", "ledger")
    told = {"layers": layers} | {name: getattr(found, name) for name in names} | {"export": export_json(report)}
    print_result(told if as_json else "\n".join(lines))
    if found.complete:
        _refuse_not_better(found, request, place, export)
        return
    said, advice = "", how_to_go_on(found.work)
    if found.note:
        said, advice = f"{found.note} ", f"ask for {layers} layers to have this result written"
    kept = "" if export is None else f"{export} was not written; "
    print(f"{said}Stopped at {layers} layers of the {request.to_layers} wanted; {kept}{advice}.", file=sys.stderr)
    raise typer.Exit(2 if found.note else INTERRUPTED)


def heal(
    request: HealRequest,
    out: OutOption = None,
    export: ExportOption = None,
    adapter: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write what was learned alone.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove layers, train what is left, compare on the same windows; with --export, write and prove it.

    The text options say what is trained on (its end is held out), --eval-... what is scored on, --tasks which questions
    every model of the ledger is asked. With --text self the uncut model writes the training text, with --self-share a
    share of it, after built-in prompts or --prompts; a --repair is fitted on the text that is read. On several devices:
    accelerate launch -m shortviz heal MODEL --remove 12-15 ...
    """
    from shortviz.cli.output import export_json
    from shortviz.export.folder import is_gguf
    from shortviz.heal.student import check_packages

    if adapter is not None and is_gguf(adapter):
        raise ShortvizError(f"--adapter is {adapter.name}, and an adapter is a folder; give another name.")
    if adapter is not None and request.settings().method == "partial":
        raise ShortvizError("Partial fine-tuning makes no adapter; leave --adapter out, or choose method lora.")
    check_folders(out=out, export=export, adapter=adapter)
    check_packages(request.settings())
    place = WrittenPlace(out, export)
    found, report = _made(request, place, adapter, shared=True)
    if found is None:
        return
    names, refused = ("applied", "verdict", "ledger", "treatment", "history"), found.verdict and not request.anyway
    if as_json:
        print_result({name: getattr(found, name) for name in names} | {"export": export_json(report)})
    else:
        print_result(
            "\n".join([*_heal_lines(found, None if refused else adapter), *_kept_line(out), *_report_lines(report)])
        )
    if not found.complete:
        assert found.history is not None, "it was trained"
        print(f"{found.history.note} Nothing was written; {how_to_go_on(found.work)}.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    _refuse_not_better(found, request, place, export or adapter)
    if adapter is not None and not found.applied:
        print(f"No adapter was written to {adapter}: nothing was learned that helps.", file=sys.stderr)


def evidence(request: EvidenceRequest, out: OutOption = None, as_json: JsonOption = False) -> None:
    """Measure what a cut model can still do, beside the uncut one: kinds of text, questions, probes, speed and size.

    With --repair and --adapter of the repaired and the healed model too. With --out each part is kept once it is done,
    and the same command goes on from there; the run's ledger of the cut, and the cards of its exports, hold it all.
    """
    from shortviz.cli.output import evidence_text

    check_folders(out=out)
    place = WrittenPlace(out)
    try:
        with working() as watch:
            found = execute(request, watch, place=place)
    except Stopped as error:
        advice = "with --out it could go on from there" if out is None else "the same command goes on from there"
        error.args = (f"{str(error).rstrip('.')}; {advice}.",)
        raise
    place.release()
    assert place.run is not None, "the ledger is in it"
    if as_json:
        print_result({"ledger": found.ledger, "notes": [*filter(None, (*notes(found.ledger), found.note))]})
    else:
        table = evidence_text(found.ledger, place.run.model)
        print_result("\n".join([table, *filter(None, [found.note]), *_kept_line(out)]))


def prune(request: ExportRequest, as_json: JsonOption = False) -> None:
    """Remove layers, write a checkpoint, prove it equal; with --adapter, of the healed model.

    Streamed, the tensors are copied from file to file in the dtype they have, and the model is never whole in memory.
    With --max-nll-increase and --min-accuracy the model is judged first, on the text and questions that are given, and
    written only where it is shown to keep them.
    """
    from shortviz.cli.output import export_json, export_text
    from shortviz.export.folder import check_target

    check_target(Path(request.folder))
    if request.removal is None and request.adapter is None:
        raise PlanError("Nothing says what to remove; give --start and --n, --remove or --plan.")
    try:
        with working() as watch:
            done = execute(request, watch)
    except GateError as error:
        if as_json:
            print_result({"gate": error.verdict})
        raise
    if as_json:
        print_result({"folder": done} if isinstance(done, str) else export_json(done))
    else:
        print_result(f"Wrote {done}." if isinstance(done, str) else export_text(done))


def check_folders(**given: Path | None) -> None:
    """Raise ShortvizError where two options name one folder, ExportError where one cannot be written or is taken.

    `out` is a run directory, which may be there already.
    """
    from shortviz.export.folder import check_target, check_writable

    named = {name: folder.resolve() for name, folder in given.items() if folder is not None}
    folders = list(named.values())
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        names = [f"--{name}" for name in given]
        raise ShortvizError(f"{twice} was given twice; give {', '.join(names[:-1])} and {names[-1]} a folder each.")
    for name, folder in given.items():
        if folder is not None:
            check_writable(folder)
            if name != "out":
                check_target(folder)


def _made(
    request: RepairRequest | ShrinkRequest | HealRequest, place: WrittenPlace, adapter: Path | None = None, *,
    shared: bool = False,
) -> Done:  # fmt: skip
    """Return what came of a request, and the report of its export; of several processes, the first one's alone.

    Work that was stopped is not written, nor what is not better on the evaluation text unless that is asked for.
    """
    from shortviz.export.gguf import refuse_cut

    refuse_cut(request.model, None if isinstance(request, ShrinkRequest) else request.removal, place.export)
    if not (isinstance(request, HealRequest) and request.own.self_share == 1 and request.repair is None):
        warn_same_text(request.text, request.evaluation)
    service, report = new_service(), None
    with working(shared=shared) as watch:
        with _kept_in(place):
            found = execute(request, watch, service=service, place=place)
            if found is None or not found.complete:
                return found, None
            if found.verdict and not request.anyway and (adapter or place.export) is not None:
                return found, None  # what it was kept in stays, for the same command with --anyway
            cut = Removal.of_layers(found.removed)
            for folder, alone in ((adapter if found.applied else None, True), (place.export, False)):
                if folder is None:
                    continue
                export = ExportRequest(
                    model=found.model, folder=str(folder), removal=cut, methods=found.methods, adapter_only=alone,
                    stream=False, anyway=request.anyway,
                )  # fmt: skip
                written = execute(export, watch, service=service, place=place)
                report = report if alone else written
        place.release()
    return found, report


def _refuse_not_better(
    found: "Treating", request: RepairRequest | ShrinkRequest | HealRequest, place: WrittenPlace, asked: Any
) -> None:
    """Raise FieldError, after all was printed, where something was to be written that is not better."""
    from shortviz.service.ledger import refuse_not_better

    if asked is not None:
        with _kept_in(place):
            refuse_not_better(found.ledger, found.methods, request.anyway)


@contextmanager
def _kept_in(place: WrittenPlace) -> Iterator[None]:
    """Make, score and write: where that fails, say where all that was computed is kept, and how to go on."""
    try:
        yield
    except BaseException as error:
        if place.work is None or not place.work.exists():
            raise
        advice = f"What was computed is kept in {place.work}: run the same command again to go on from there."
        if isinstance(error, FieldError):  # which is spelled from its field
            error.why += f". {advice[:-1]}"
        elif isinstance(error, ShortvizError):
            error.args = (f"{error} {advice}",)
        else:
            print(advice, file=sys.stderr)
        raise


def _kept_line(out: Path | None) -> list[str]:
    """Return the line that says where the ledger is kept."""
    return [] if out is None else [f"The ledger is kept in {out}; see shortviz show, and shortviz advise."]


def _report_lines(report: "ExportReport | None") -> list[str]:
    """Return what is said of an export."""
    from shortviz.cli.output import export_text

    return [] if report is None else [export_text(report)]


def _heal_lines(found: "Treating", adapter: Path | None) -> list[str]:
    from shortviz.cli.output import ledger_text

    assert found.ledger is not None, "the cut was scored"
    assert found.treatment is not None, "it was trained"
    assert found.history is not None, "it was trained"
    lines = [ledger_text(found.ledger), _trained(found.history, found.treatment.settings)]
    if not found.applied:
        lines.append(f"Nothing was changed. {found.treatment.note}")
    if adapter is not None and found.applied and found.complete:
        lines.append(f"The adapter alone is in {adapter}.")
    return lines


def _trained(history: "HealHistory", settings: Any) -> str:
    rates = sorted(p.tokens_per_second for p in history.points if p.tokens_per_second)
    speed = f", {rates[len(rates) // 2]:,.0f} tokens a second" if rates else ""
    return (
        f"Trained {settings['trained_parameters']:,} parameters, {history.points[-1].step} of {history.steps} "
        f"steps{speed}; held-out NLL {history.start_nll:.4f} before, {history.best_nll:.4f} at step "
        f"{history.best_step}, which is kept ({settings['heldout_text']})."
    )


def _shrink_text(found: "Treating", layers: int) -> str:
    from shortviz.cli.output import ledger_text
    from shortviz.records.formatting import duration, layers_text, with_error
    from shortviz.records.table import Table, left, right

    rows = [["", "", with_error(found.base_nll), "", "", "uncut"]]
    for step in found.steps:
        rows.append(
            [
                str(step.layer),
                with_error(step.nll_cut),
                with_error(step.nll),
                with_error(step.increase, step.increase_stderr, sign=True),
                duration(step.seconds),
                step.note if step.treatment is None else f"repaired by {step.treatment.method.replace('_', ' ')}",
            ]
        )
    assert found.ledger is not None, "the cut was scored"
    return "\n".join([
        f"{layers} layers are left; removed {layers_text(found.removed)}.",
        Table(right("layer", "NLL cut", "NLL", "increase", "time") + left(""), rows).text(),
        "NLL in nats a token, on the windows the layers were chosen on: that flatters, so evaluate on other text.",
        "", ledger_text(found.ledger),
    ])  # fmt: skip
