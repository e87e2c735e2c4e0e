"""`shortviz repair` and `shortviz shrink`: cut, repair without training, compare on the same windows, export."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortviz.cli_numbers import at_least
from shortviz.cli_options import (
    EvaluationOptions,
    JsonOption,
    LoadOptions,
    ModelArgument,
    PlanOptions,
    TextOptions,
    with_options,
)
from shortviz.cli_session import INTERRUPTED, load_model, print_result, warn_same_text, working
from shortviz.errors import PlanError, TextError

if TYPE_CHECKING:
    import threading

    from shortviz.handle import ModelHandle
    from shortviz.ledger import Ledger
    from shortviz.records import Evaluation, ExportReport, OnProgress, TokenSet, WindowSet
    from shortviz.shrink import Shrunk

FIT_TOKENS = 16_384
"""Tokens to fit on where the text has as many."""
FIT_LENGTH = 256
"""Tokens in a row of them, without --max-length."""

MethodOption = Annotated[str, typer.Option(help="seam_refit, linear_fold, scale; linear_replacement (not exportable).")]
FitTokensOption = Annotated[int, typer.Option(help="Tokens of the text to fit on, in rows of --max-length (256).")]
OutOption = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where to write; must be new or empty.")]


@with_options
def repair_command(
    model: ModelArgument,
    plan: PlanOptions,
    load: LoadOptions,
    text: TextOptions,
    evaluation: EvaluationOptions,
    method: MethodOption = "seam_refit",
    fit_tokens: FitTokensOption = FIT_TOKENS,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove layers, repair the seam without training, compare on the same windows; with --out, write and prove it.

    The text options say what is fitted on, --eval-... what is scored on.
    """
    from shortviz.checkpoint_folder import check_target
    from shortviz.cli_ledger_output import ledger_text

    text.note_unused("seed")
    if out is not None:
        check_target(out)
    chosen = plan.chosen()
    if chosen is None:
        raise PlanError("Nothing says what to remove; give --start and --n, --remove or --plan.")
    with working() as (on_progress, stop):
        from shortviz import pruning
        from shortviz.repair import METHODS, repair

        if method not in METHODS:
            raise PlanError(f"There is no repair called {method!r}; choose {', '.join(METHODS)}.")
        if out is not None and method == "linear_replacement":
            raise PlanError("A linear_replacement has no place in a stock model; leave --out away, or use linear_fold.")
        texts = _Texts(text, evaluation, fit_tokens)
        handle = load_model(load.ref(model), on_progress, stop, removes=chosen)
        tokens, windows = texts.of(handle)
        cut = pruning.prune(handle, chosen.of(handle.info.num_layers))
        repaired = repair(
            cut, handle, tokens, method=method, batch_size=text.batch_size, on_progress=on_progress, stop=stop
        )
        ledger, scored = _ledger(handle, cut, repaired.handle, windows, on_progress, stop)
        report = None
        if out is not None:
            report = _export(repaired.handle, handle, out, tokens, scored, on_progress, stop)
    verdict = repaired.treatment.note if repaired.applied else f"Nothing was changed. {repaired.treatment.note}"
    if as_json:
        print_result(_repair_json(report, ledger, verdict, repaired.applied))
    else:
        unsaid = [] if repaired.applied else [verdict]  # the ledger has the note of a repair that was applied
        print_result("\n".join([ledger_text(ledger), *unsaid, *_report_lines(report)]))


@with_options
def shrink_command(
    model: ModelArgument,
    load: LoadOptions,
    text: TextOptions,
    evaluation: EvaluationOptions,
    to_layers: Annotated[int, typer.Option(help="Layers that are to be left.")],
    method: MethodOption = "seam_refit",
    fit_tokens: FitTokensOption = FIT_TOKENS,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove the layer that costs least, repair, measure again, and so on; with --out, write the result and prove it.

    The text options say what is fitted on, --eval-... what the layers are chosen on. Ctrl-C keeps what is done.
    """
    from shortviz.checkpoint_folder import check_target

    at_least(1, to_layers=to_layers)
    text.note_unused("seed")
    if out is not None:
        check_target(out)
    with working() as (on_progress, stop):
        from shortviz.losses import evaluate
        from shortviz.shrink import check_layers, shrink

        texts = _Texts(text, evaluation, fit_tokens)
        handle = load_model(load.ref(model), on_progress, stop, fits=lambda now: check_layers(now, to_layers))
        tokens, windows = texts.of(handle)
        shrunk = shrink(
            handle,
            windows,
            tokens,
            to_layers,
            method=method,
            batch_size=text.batch_size,
            on_progress=on_progress,
            stop=stop,
        )
        report = None
        if out is not None and shrunk.complete:
            scored = evaluate(shrunk.handle, windows, base=handle, on_progress=on_progress, stop=stop)
            report = _export(shrunk.handle, handle, out, tokens, scored, on_progress, stop)
    print_result(_shrunk_json(shrunk, report) if as_json else "\n".join([_shrunk_text(shrunk), *_report_lines(report)]))
    if not shrunk.complete:
        left = shrunk.handle.info.num_layers
        print(f"Stopped at {left} layers of the {to_layers} wanted; nothing was written.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


class _Texts:
    """Both texts, read before minutes are spent on loading a model, so that a bad file is told at once."""

    def __init__(self, fit: TextOptions, evaluation: EvaluationOptions, fit_tokens: int) -> None:
        from shortviz import texts
        from shortviz.records import WindowSpec

        self.fit = fit.spec(replace(texts.DEFAULT_CALIBRATION, limit=None))
        self.scored = evaluation.spec(texts.DEFAULT_EVALUATION, self.fit.bos)
        for spec in (self.fit, self.scored):
            if spec.kind != "dataset":
                texts.read_rows(spec)
        warn_same_text(self.fit, self.scored)
        length = fit.max_length or FIT_LENGTH
        if fit_tokens < 2 * length:
            raise TextError(
                f"--fit-tokens is {fit_tokens}; a repair is fitted on some rows and judged on others, so give at least "
                f"{2 * length}, two rows of {length}."
            )
        self.rows = WindowSpec(window=length, windows=fit_tokens // length)
        self.windows = fit.window_spec()

    def of(self, handle: "ModelHandle") -> "tuple[TokenSet, WindowSet]":
        """Return the rows to fit on, cut from the joined text so that none of it is lost, and the windows to score."""
        from shortviz import texts

        rows = texts.make_windows(self.fit, self.rows, handle.tokenizer)
        return texts.packed_rows(rows), texts.make_windows(self.scored, self.windows, handle.tokenizer)


def _ledger(
    base: "ModelHandle",
    cut: "ModelHandle",
    repaired: "ModelHandle",
    windows: "WindowSet",
    on_progress: "OnProgress",
    stop: "threading.Event",
) -> "tuple[Ledger, Evaluation]":
    from shortviz.ledger_steps import add_step, start_ledger
    from shortviz.losses import BaseScores, evaluate

    scores = BaseScores(base)
    before = evaluate(cut, windows, base=base, base_scores=scores, on_progress=on_progress, stop=stop)
    ledger = start_ledger(before)
    if repaired is cut:
        return ledger, before
    after = evaluate(repaired, windows, base=base, base_scores=scores, on_progress=on_progress, stop=stop)
    return add_step(ledger, "repaired", after, repaired.treatments), after


def _export(
    model: "ModelHandle",
    base: "ModelHandle",
    out: Path,
    tokens: "TokenSet",
    evaluation: "Evaluation",
    on_progress: "OnProgress",
    stop: "threading.Event",
) -> "ExportReport":
    from shortviz.export import export_checkpoint

    return export_checkpoint(model, out, base_info=base.info, evaluation=evaluation, on_progress=on_progress, stop=stop)


def _report_lines(report: "ExportReport | None") -> list[str]:
    from shortviz.cli_output import export_text

    return [] if report is None else [export_text(report)]


def _repair_json(report: "ExportReport | None", ledger: "Ledger", note: str, applied: bool) -> dict[str, Any]:
    from shortviz.recipes import prune_json
    from shortviz.record_json import ledger_json

    return {
        "applied": applied,
        "note": note,
        "ledger": ledger_json(ledger),
        "export": None if report is None else prune_json(report),
    }


def _shrunk_json(shrunk: "Shrunk", report: "ExportReport | None") -> dict[str, Any]:
    from shortviz.recipes import prune_json
    from shortviz.record_json import finite, treatment_json

    steps = []
    for step in shrunk.steps:
        treatment = None if step.treatment is None else treatment_json(step.treatment)
        steps.append(
            finite(
                {
                    "layer": step.layer,
                    "removed": list(step.removed),
                    "nll_cut": step.nll_cut,
                    "nll": step.nll,
                    "increase": step.increase,
                    "increase_stderr": step.increase_stderr,
                    "treatment": treatment,
                    "note": step.note,
                    "seconds": step.seconds,
                }
            )
        )
    return {
        "layers": shrunk.handle.info.num_layers,
        "complete": shrunk.complete,
        "base_nll": shrunk.base_nll,
        "steps": steps,
        "export": None if report is None else prune_json(report),
    }


def _shrunk_text(shrunk: "Shrunk") -> str:
    from shortviz.cli_output import table
    from shortviz.words import duration

    rows = [["", "", f"{shrunk.base_nll:.4f}", "", "", "", "uncut"]]
    for step in shrunk.steps:
        error = "-" if step.increase_stderr != step.increase_stderr else f"{step.increase_stderr:.4f}"
        rows.append(
            [
                str(step.layer),
                f"{step.nll_cut:.4f}",
                f"{step.nll:.4f}",
                f"{step.increase:+.4f}",
                error,
                duration(step.seconds),
                step.note if step.treatment is None else f"repaired by {step.treatment.method.replace('_', ' ')}",
            ]
        )
    removed = ", ".join(map(str, shrunk.steps[-1].removed))
    return "\n".join(
        [
            f"{shrunk.handle.info.num_layers} layers are left; removed {removed}.",
            table(["layer", "NLL cut", "NLL", "increase", "+-", "time", ""], rows),
            "NLL in nats a token, on the windows the layers were chosen on: that flatters, so evaluate on other text.",
        ]
    )
