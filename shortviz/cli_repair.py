"""`shortviz repair`: cut, repair without training, compare on the same windows, export. Heavy imports wait inside."""

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
from shortviz.cli_options import (
    EvaluationOptions,
    JsonOption,
    LoadOptions,
    ModelArgument,
    PlanOptions,
    TextOptions,
    readable,
    with_options,
)
from shortviz.cli_session import load_model, print_result, warn_same_text, working
from shortviz.cli_task_options import TaskOptions
from shortviz.cli_work_folder import check_folders, check_room, check_run, clear_work, kept_in, work_folder
from shortviz.errors import PlanError, TextError
from shortviz.fit_text import FIT_LENGTH, FIT_TOKENS

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle
    from shortviz.ledger import Ledger
    from shortviz.records import ExportReport, TokenSet, WindowSet
    from shortviz.repair import Repaired

CHECKPOINT = "repair-checkpoint.safetensors"
"""In the run directory, while what was repaired is not yet written where it was wanted."""
MethodOption = Annotated[str, typer.Option(help="seam_refit, linear_fold or scale.")]
FitTokensOption = Annotated[int, typer.Option(help="Tokens of the text to fit on, in rows of --max-length (256).")]


@with_options
def repair_command(
    model: ModelArgument,
    plan: PlanOptions,
    load: LoadOptions,
    text: TextOptions,
    evaluation: EvaluationOptions,
    task: TaskOptions,
    method: MethodOption = "seam_refit",
    fit_tokens: FitTokensOption = FIT_TOKENS,
    out: RunOption = None,
    export: ExportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove layers, repair the seam without training, compare on the same windows; with --export, write and prove it.

    The text options say what is fitted on, --eval-... what is scored on, --tasks which questions the uncut, the cut and
    the repaired model are asked.
    """
    from shortviz.cli_ledger_output import ledger_text
    from shortviz.task_rows import read_task

    text.note_unused("seed")
    check_folders(out=out, export=export)
    folder = work_folder(out, export)
    chosen = plan.chosen()
    if chosen is None:
        raise PlanError("Nothing says what to remove; give --start and --n, --remove or --plan.")
    asked = task.task()
    with working() as watch:
        from shortviz import pruning
        from shortviz.repair import check_method, repair

        check_method(method)
        texts = FitTexts(text, evaluation, fit_tokens)
        questions = read_task(asked) if asked is not None else None
        handle = load_model(load.ref(model, one_device="A repair"), watch, removes=chosen)
        check_run(folder, handle.info.id)
        tokens, windows = texts.of(handle)
        cut = pruning.prune(handle, chosen.of(handle.info.num_layers))
        check_room(export, cut)
        repaired = _known(folder, cut, handle, tokens, method, text.batch_size) or repair(
            cut, handle, tokens, method=method, batch_size=text.batch_size, watch=watch
        )
        _keep(folder, repaired, handle, tokens)
        with kept_in(folder, out):
            work = LedgerWork(handle, windows, questions, watch)
            work.open(cut)
            if repaired.applied:
                work.add(repaired.handle)
            if folder is not None:
                work.save(folder, tokens.info)
            report = work.export(repaired.handle, export) if export is not None else None
        clear_work(folder, out, CHECKPOINT)
    verdict = repaired.treatment.note if repaired.applied else f"Nothing was changed. {repaired.treatment.note}"
    if as_json:
        print_result(_json(report, work.ledger, verdict, repaired.applied))
    else:
        unsaid = [] if repaired.applied else [verdict]  # the ledger has the note of a repair that was applied
        print_result("\n".join([ledger_text(work.ledger), *unsaid, *kept_line(out), *report_lines(report)]))


def _keep(folder: Path | None, repaired: "Repaired", base: "ModelHandle", tokens: "TokenSet") -> None:
    """Keep what was repaired until it is written where it was wanted."""
    if folder is None or not repaired.applied:
        return
    from shortviz.own_weights import save_treated

    save_treated(folder / CHECKPOINT, repaired.handle, base, {"text": tokens.info.fingerprint})


def _known(
    folder: Path | None, cut: "ModelHandle", base: "ModelHandle", tokens: "TokenSet", method: str, batch_size: int
) -> "Repaired | None":
    """Return the very repair that a command before this one could not write, or None; another one is made anew."""
    from shortviz.own_weights import load_treated
    from shortviz.repair import Repaired

    found = load_treated(folder / CHECKPOINT, base) if folder is not None else None
    if found is None:
        return None
    handle, facts = found
    (done,) = handle.treatments
    same = (handle.plan, facts["text"], done.method, done.settings["batch_size"])
    if same != (cut.plan, tokens.info.fingerprint, method, batch_size):
        return None
    return Repaired(handle=handle, treatment=done, applied=True)


class FitTexts:
    """Both texts, read before minutes are spent on loading a model, so that a bad file is told at once."""

    def __init__(self, fit: TextOptions, evaluation: EvaluationOptions, fit_tokens: int) -> None:
        from shortviz import texts

        self.fit = readable(fit.spec(replace(texts.DEFAULT_CALIBRATION, limit=None)))
        self.scored = readable(evaluation.spec(texts.DEFAULT_EVALUATION, self.fit.bos))
        warn_same_text(self.fit, self.scored)
        self.tokens, self.length = fit_tokens, fit.max_length or FIT_LENGTH
        if fit_tokens < 2 * self.length:
            raise TextError(
                f"--fit-tokens is {fit_tokens}; a repair is fitted on some rows and judged on others, so give at least "
                f"{2 * self.length}, two rows of {self.length}."
            )
        self.windows = fit.window_spec()

    def of(self, handle: "ModelHandle") -> "tuple[TokenSet, WindowSet]":
        """Return the rows to fit on, and the windows to score."""
        from shortviz.fit_text import fit_rows
        from shortviz.texts import make_windows

        rows = fit_rows(self.fit, handle.tokenizer, tokens=self.tokens, length=self.length)
        return rows, make_windows(self.scored, self.windows, handle.tokenizer)


def _json(report: "ExportReport | None", ledger: "Ledger", note: str, applied: bool) -> dict[str, Any]:
    return {
        "applied": applied,
        "note": note,
        "ledger": ledger,
        "export": report,
    }
