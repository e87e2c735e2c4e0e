"""`shortviz shrink`: cut, repair, measure again, cut more; export. Heavy imports wait inside."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortviz.cli_ledger_work import (
    ExportOption,
    LedgerWork,
    RunOption,
    kept_line,
    report_lines,
)
from shortviz.cli_numbers import at_least
from shortviz.cli_options import (
    EvaluationOptions,
    JsonOption,
    LoadOptions,
    ModelArgument,
    TextOptions,
    with_options,
)
from shortviz.cli_repair import FitTexts, FitTokensOption, MethodOption
from shortviz.cli_session import INTERRUPTED, how_to_go_on, load_model, print_result, working
from shortviz.cli_task_options import TaskOptions
from shortviz.cli_work_folder import check_folders, check_room, check_run, clear_work, kept_in, work_folder
from shortviz.fit_text import FIT_TOKENS

if TYPE_CHECKING:
    from shortviz.ledger import Ledger
    from shortviz.records import ExportReport, WindowSet
    from shortviz.shrink import Shrunk

CHECKPOINT = "shrink-checkpoint.safetensors"
"""In the run directory, while a shrinking is unfinished."""


@with_options
def shrink_command(
    model: ModelArgument,
    load: LoadOptions,
    text: TextOptions,
    evaluation: EvaluationOptions,
    task: TaskOptions,
    to_layers: Annotated[int, typer.Option(help="Layers that are to be left.")],
    method: MethodOption = "seam_refit",
    fit_tokens: FitTokensOption = FIT_TOKENS,
    out: RunOption = None,
    export: ExportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove the layer that costs least, repair, measure again, and so on; with --export, write the result, proved.

    The text options say what is fitted on, --eval-... what the layers are chosen on, --tasks which questions the uncut,
    the cut and the final model are asked. Ctrl-C keeps what is done; with --out, the same command then goes on.
    """
    from shortviz.task_rows import read_task

    at_least(1, to_layers=to_layers)
    text.note_unused("seed")
    check_folders(out=out, export=export)
    folder = work_folder(out, export)
    asked = task.task()
    with working() as watch:
        from shortviz.pruning import prune
        from shortviz.repair import check_method
        from shortviz.shrink import check_layers, shrink

        check_method(method)
        texts = FitTexts(text, evaluation, fit_tokens)
        questions = read_task(asked) if asked is not None else None
        handle = load_model(
            load.ref(model, one_device="Shrinking"), watch, fits=lambda now: check_layers(now, to_layers)
        )
        check_run(folder, handle.info.id)
        gone = sorted(handle.info.layer_bytes, reverse=True)[: handle.info.num_layers - to_layers]
        check_room(export, handle, fewer_bytes=sum(gone))
        tokens, windows = texts.of(handle)
        shrunk = shrink(
            handle,
            windows,
            tokens,
            to_layers,
            method=method,
            batch_size=text.batch_size,
            checkpoint=folder / CHECKPOINT if folder is not None else None,
            watch=watch,
        )
        ledger, report = None, None
        if shrunk.complete:
            with kept_in(folder, out):
                work = LedgerWork(handle, _named(windows), questions, watch)
                assert shrunk.handle.plan is not None, "something was removed"
                work.open(prune(handle, shrunk.handle.plan))
                if shrunk.handle.treatments:
                    work.add(shrunk.handle)
                ledger = work.ledger
                if folder is not None:
                    work.save(folder, tokens.info)
                report = work.export(shrunk.handle, export) if export is not None else None
            clear_work(folder, out, CHECKPOINT)
    kept = out if shrunk.complete else None
    lines = [_text(shrunk, ledger), *kept_line(kept), *report_lines(report)]
    print_result(_json(shrunk, ledger, report) if as_json else "\n".join(lines))
    if not shrunk.complete:
        _tell_unfinished(shrunk, to_layers, folder)


def _tell_unfinished(shrunk: "Shrunk", to_layers: int, folder: Path | None) -> None:
    """Say why fewer layers went than wanted; exit with the code of a stop or, where more was refused, of bad input."""
    left = shrunk.handle.info.num_layers
    advice = how_to_go_on(folder)
    if shrunk.note:
        advice = f"ask for {left} layers to have this result written"
    said = f"{shrunk.note} " if shrunk.note else ""
    print(f"{said}Stopped at {left} layers of the {to_layers} wanted; nothing was written; {advice}.", file=sys.stderr)
    raise typer.Exit(2 if shrunk.note else INTERRUPTED)


def _named(windows: "WindowSet") -> "WindowSet":
    """Return the windows under a name that says what they were used for: whoever reads the ledger is to know."""
    info = windows.info
    return replace(windows, info=replace(info, source=f"{info.source}, which the layers were chosen on"))


def _json(shrunk: "Shrunk", ledger: "Ledger | None", report: "ExportReport | None") -> dict[str, Any]:
    return {
        "layers": shrunk.handle.info.num_layers,
        "complete": shrunk.complete,
        "note": shrunk.note,
        "base_nll": shrunk.base_nll,
        "steps": shrunk.steps,
        "ledger": ledger,
        "export": report,
    }


def _text(shrunk: "Shrunk", ledger: "Ledger | None") -> str:
    from shortviz.cli_ledger_output import ledger_text
    from shortviz.table import Table, left, right
    from shortviz.words import duration, layers_text, with_error

    rows = [["", "", with_error(shrunk.base_nll), "", "", "uncut"]]
    for step in shrunk.steps:
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
    lines = [
        f"{shrunk.handle.info.num_layers} layers are left; removed {layers_text(shrunk.steps[-1].removed)}.",
        Table(right("layer", "NLL cut", "NLL", "increase", "time") + left(""), rows).text(),
        "NLL in nats a token, on the windows the layers were chosen on: that flatters, so evaluate on other text.",
    ]
    return "\n".join([*lines, *([] if ledger is None else ["", ledger_text(ledger)])])
