"""`shortviz repair`: cut, repair without training, compare on the same windows, export. Heavy imports wait inside."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortviz.cli.options import (
    EvaluationOptions,
    HealOptions,
    JsonOption,
    LoadOptions,
    ModelArgument,
    PlanOptions,
    TaskOptions,
    TextOptions,
    at_least,
    readable,
    with_options,
)
from shortviz.cli.session import INTERRUPTED, how_to_go_on, load_model, print_result, warn_same_text, working
from shortviz.errors import ModelError, PlanError, ShortvizError, TextError
from shortviz.service.ledger import (
    CHECKPOINT,
    HealWork,
    LedgerWork,
    check_folders,
    check_room,
    check_run,
    clear_work,
    kept_in,
    together,
    work_folder,
)
from shortviz.text.tokens import FIT_LENGTH, FIT_TOKENS

if TYPE_CHECKING:
    from shortviz.heal.heal import Healed
    from shortviz.model.handle import ModelHandle
    from shortviz.records.heal import HealHistory
    from shortviz.records.ledger import Ledger
    from shortviz.records.measured import ExportReport
    from shortviz.records.plan import Removal
    from shortviz.records.text import TokenSet, WindowSet
    from shortviz.repair.repair import Repaired
    from shortviz.repair.shrink import Shrunk


RunOption = Annotated[
    Path | None, typer.Option("--out", metavar="RUN", help="Run directory to keep the ledger in, for show and advise.")
]
ExportOption = Annotated[
    Path | None, typer.Option("--export", metavar="FOLDER", help="Write the model, proved; must be new or empty.")
]


def kept_line(out: Path | None) -> list[str]:
    """Return the line that says where the ledger is kept."""
    return [] if out is None else [f"The ledger is kept in {out}; see shortviz show, and shortviz advise."]


def report_lines(report: "ExportReport | None") -> list[str]:
    """Return what is said of an export."""
    from shortviz.cli.output import export_text

    return [] if report is None else [export_text(report)]


REPAIR_CHECKPOINT = "repair-checkpoint.safetensors"
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
    from shortviz.cli.output import ledger_text
    from shortviz.text.questions import read_task

    text.note_unused("seed")
    check_folders(out=out, export=export)
    folder = work_folder(out, export)
    chosen = plan.chosen()
    if chosen is None:
        raise PlanError("Nothing says what to remove; give --start and --n, --remove or --plan.")
    asked = task.task()
    with working() as watch:
        from shortviz.model import prune as pruning
        from shortviz.repair.repair import check_method, repair

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
        clear_work(folder, out, REPAIR_CHECKPOINT)
    verdict = repaired.treatment.note if repaired.applied else f"Nothing was changed. {repaired.treatment.note}"
    if as_json:
        print_result(_repair_json(report, work.ledger, verdict, repaired.applied))
    else:
        unsaid = [] if repaired.applied else [verdict]  # the ledger has the note of a repair that was applied
        print_result("\n".join([ledger_text(work.ledger), *unsaid, *kept_line(out), *report_lines(report)]))


def _keep(folder: Path | None, repaired: "Repaired", base: "ModelHandle", tokens: "TokenSet") -> None:
    """Keep what was repaired until it is written where it was wanted."""
    if folder is None or not repaired.applied:
        return
    from shortviz.model.delta import save_treated

    save_treated(folder / REPAIR_CHECKPOINT, repaired.handle, base, {"text": tokens.info.fingerprint})


def _known(
    folder: Path | None, cut: "ModelHandle", base: "ModelHandle", tokens: "TokenSet", method: str, batch_size: int
) -> "Repaired | None":
    """Return the very repair that a command before this one could not write, or None; another one is made anew."""
    from shortviz.model.delta import load_treated
    from shortviz.repair.repair import Repaired

    found = load_treated(folder / REPAIR_CHECKPOINT, base) if folder is not None else None
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
        from shortviz.text import tokens as texts

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
        from shortviz.text.tokens import fit_rows, make_windows

        rows = fit_rows(self.fit, handle.tokenizer, tokens=self.tokens, length=self.length)
        return rows, make_windows(self.scored, self.windows, handle.tokenizer)


def _repair_json(report: "ExportReport | None", ledger: "Ledger", note: str, applied: bool) -> dict[str, Any]:
    return {
        "applied": applied,
        "note": note,
        "ledger": ledger,
        "export": report,
    }


# `--adapter FOLDER` of evaluate and prune: the cut that an adapter belongs to, with what it learned merged in.

AdapterOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="An adapter of shortviz heal, merged in; its own cut is made where none is given."
    ),
]


def adapter_cut(adapter: Path | None, chosen: "Removal | None", num_layers: int) -> "Removal | None":
    """Return what to remove: as asked, else the adapter's own cut; nothing where the model has that cut behind it.

    Raises ModelError where there is no adapter of ours, PlanError where another cut was asked for than the adapter's.
    """
    if adapter is None:
        return chosen
    from shortviz.heal.adapter import cut_of
    from shortviz.records.formatting import layers_text
    from shortviz.records.plan import Removal

    whole, removed = cut_of(adapter)
    if chosen is None:
        own = Removal(layers=removed) if removed and num_layers == whole else None
        if own is None and num_layers not in (whole, whole - len(removed)):
            raise ModelError(
                f"The adapter in {adapter} belongs to a cut of a model of {whole} layers, and this one has "
                f"{num_layers}; give the model that it was trained on."
            )
        return own
    if (asked := chosen.of(num_layers).removed) != removed:
        raise PlanError(
            f"The adapter in {adapter} belongs to the cut of layers {layers_text(removed) or 'none'}, not of "
            f"{layers_text(asked)}; leave the cut out, and the adapter's own is made."
        )
    return chosen


def with_adapter(cut: "ModelHandle", adapter: Path | None) -> "ModelHandle":
    """Return a cut model with an adapter merged in; itself without one."""
    if adapter is None:
        return cut
    from shortviz.heal.adapter import load_adapter

    return load_adapter(cut, adapter)


# `shortviz heal`: cut, repair if wanted, train, compare all on the same windows, export. Heavy imports wait inside.


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
    from shortviz.heal.student import check_packages
    from shortviz.records.text import ALL_TOKENS
    from shortviz.text.questions import read_task
    from shortviz.text.tokens import DEFAULT_CALIBRATION, DEFAULT_EVALUATION, FIT_LENGTH

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
    print_result(_heal_json(healed, ledger, report) if as_json else _heal_text(healed, ledger, report, written, out))
    if stopped:
        advice = how_to_go_on(folder)
        print(f"{healed.history.note} Nothing was written; {advice}.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if adapter is not None and written is None:
        print(f"No adapter was written to {adapter}: nothing was learned that helps.", file=sys.stderr)


def _check_repair(repair: str | None) -> None:
    if repair is None:
        return
    from shortviz.repair.repair import check_method

    check_method(repair)


def _heal_json(healed: "Healed", ledger: "Ledger", report: "ExportReport | None") -> dict[str, Any]:
    return {
        "applied": healed.applied,
        "ledger": ledger,
        "treatment": healed.treatment,
        "history": healed.history,
        "export": report,
    }


def _heal_text(
    healed: "Healed", ledger: "Ledger", report: "ExportReport | None", adapter: Path | None, out: Path | None
) -> str:
    from shortviz.cli.output import ledger_text

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


# `shortviz shrink`: cut, repair, measure again, cut more; export. Heavy imports wait inside.

SHRINK_CHECKPOINT = "shrink-checkpoint.safetensors"
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
    from shortviz.text.questions import read_task

    at_least(1, to_layers=to_layers)
    text.note_unused("seed")
    check_folders(out=out, export=export)
    folder = work_folder(out, export)
    asked = task.task()
    with working() as watch:
        from shortviz.model.prune import prune
        from shortviz.repair.repair import check_method
        from shortviz.repair.shrink import check_layers, shrink

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
            checkpoint=folder / SHRINK_CHECKPOINT if folder is not None else None,
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
            clear_work(folder, out, SHRINK_CHECKPOINT)
    kept = out if shrunk.complete else None
    lines = [_shrink_text(shrunk, ledger), *kept_line(kept), *report_lines(report)]
    print_result(_shrink_json(shrunk, ledger, report) if as_json else "\n".join(lines))
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


def _shrink_json(shrunk: "Shrunk", ledger: "Ledger | None", report: "ExportReport | None") -> dict[str, Any]:
    return {
        "layers": shrunk.handle.info.num_layers,
        "complete": shrunk.complete,
        "note": shrunk.note,
        "base_nll": shrunk.base_nll,
        "steps": shrunk.steps,
        "ledger": ledger,
        "export": report,
    }


def _shrink_text(shrunk: "Shrunk", ledger: "Ledger | None") -> str:
    from shortviz.cli.output import ledger_text
    from shortviz.records.formatting import duration, layers_text, with_error
    from shortviz.records.table import Table, left, right

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
