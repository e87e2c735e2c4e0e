"""`shortviz heal`: cut, repair if wanted, train, compare all on the same windows, export. Heavy imports wait inside."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortviz.cli_heal_options import HealOptions
from shortviz.cli_heal_work import CHECKPOINT, HealWork, together
from shortviz.cli_ledger_work import kept_line, report_lines
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
from shortviz.cli_session import INTERRUPTED, how_to_go_on, load_model, print_result, warn_same_text, working
from shortviz.cli_task_options import TaskOptions
from shortviz.cli_work_folder import check_folders, clear_work, kept_in, work_folder
from shortviz.errors import PlanError, ShortvizError

if TYPE_CHECKING:
    from shortviz.heal_settings import HealHistory
    from shortviz.healing import Healed
    from shortviz.ledger import Ledger
    from shortviz.records import ExportReport


@with_options
def heal_command(
    model: ModelArgument,
    plan: PlanOptions,
    load: LoadOptions,
    text: TextOptions,
    evaluation: EvaluationOptions,
    task: TaskOptions,
    recipe: HealOptions,
    repair: Annotated[str | None, typer.Option(help="Repair first, in closed form: e.g. seam_refit.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run directory; a training cut short goes on from there.")
    ] = None,
    export: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the healed model, proved.")] = None,
    adapter: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write what was learned alone.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove layers, train what is left, compare on the same windows; with --export, write and prove it.

    The text options say what is trained on (its end is held out), --eval-... what is scored on, --tasks which questions
    every model of the ledger is asked. On several devices: accelerate launch -m shortviz heal MODEL --remove 12-15 ...
    """
    from shortviz.fit_text import FIT_LENGTH
    from shortviz.heal_data import ALL_TOKENS
    from shortviz.heal_packages import check_packages
    from shortviz.task_rows import read_task
    from shortviz.texts import DEFAULT_CALIBRATION, DEFAULT_EVALUATION

    chosen = plan.chosen()
    if chosen is None:
        raise PlanError("Nothing says what to remove; give --start and --n, --remove or --plan.")
    if adapter is not None and recipe.method == "partial":
        raise ShortvizError("Partial fine-tuning makes no adapter; leave --adapter out, or choose method lora.")
    check_folders(out=out, export=export, adapter=adapter)
    folder = work_folder(out, export, adapter)
    _check_repair(repair)
    check_packages(recipe.settings(None, text.seed))
    text.note_unused("batch_size")
    spec = text.spec(replace(DEFAULT_CALIBRATION, limit=None))
    spec = readable(replace(spec, max_length=text.max_length or ALL_TOKENS))
    scored_on = readable(evaluation.spec(DEFAULT_EVALUATION, spec.bos))
    warn_same_text(spec, scored_on)
    asked = task.task()
    questions = read_task(asked) if asked is not None else None
    with working(shared=True) as watch, together(load) as (load, is_main):
        handle = load_model(load.ref(model, one_device="Healing"), watch, removes=chosen)
        work = HealWork(handle, spec, recipe.settings(handle.info, text.seed), folder if is_main else None, watch)
        if is_main:
            work.score_on(scored_on, text.window_spec(), questions)
        work.cut_out(chosen.of(handle.info.num_layers), repair, text.max_length or FIT_LENGTH, export)
        if out is not None:
            work.save()  # a training may run away, or be killed
        healed = work.train()
        if not is_main:
            return
        with kept_in(folder, out):
            ledger = work.score(healed)
            stopped = watch.stopped and not healed.history.complete
            work.save()  # before anything that may fail
            report = work.write(healed, export, adapter) if not stopped else None
        if not stopped:
            clear_work(folder, out, CHECKPOINT)
    written = adapter if healed.adapter is not None and not stopped else None
    print_result(_json(healed, ledger, report) if as_json else _text(healed, ledger, report, written, out))
    if stopped:
        advice = how_to_go_on(folder)
        print(f"{healed.history.note} Nothing was written; {advice}.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if adapter is not None and written is None:
        print(f"No adapter was written to {adapter}: nothing was learned that helps.", file=sys.stderr)


def _check_repair(repair: str | None) -> None:
    if repair is None:
        return
    from shortviz.repair import check_method

    check_method(repair)


def _json(healed: "Healed", ledger: "Ledger", report: "ExportReport | None") -> dict[str, Any]:
    return {
        "applied": healed.applied,
        "ledger": ledger,
        "treatment": healed.treatment,
        "history": healed.history,
        "export": report,
    }


def _text(
    healed: "Healed", ledger: "Ledger", report: "ExportReport | None", adapter: Path | None, out: Path | None
) -> str:
    from shortviz.cli_ledger_output import ledger_text

    lines = [ledger_text(ledger), _trained(healed.history, healed.treatment.settings)]
    if not healed.applied:
        lines.append(f"Nothing was changed. {healed.treatment.note}")
    if adapter is not None:
        lines.append(f"The adapter alone is in {adapter}.")
    return "\n".join([*lines, *kept_line(out), *report_lines(report)])


def _trained(history: "HealHistory", settings: Any) -> str:
    rates = sorted(p.tokens_per_second for p in history.points if p.tokens_per_second)
    speed = f", {rates[len(rates) // 2]:,.0f} tokens a second" if rates else ""
    return (
        f"Trained {settings['trained_parameters']:,} parameters, {history.points[-1].step} of {history.steps} "
        f"steps{speed}; held-out NLL {history.start_nll:.4f} before, {history.best_nll:.4f} at step "
        f"{history.best_step}, which is kept ({settings['heldout_text']})."
    )
