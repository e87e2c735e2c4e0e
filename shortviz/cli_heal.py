"""`shortviz heal`: cut, repair if wanted, train, compare all on the same windows, export. Heavy imports wait inside."""

import os
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortviz.cli_heal_options import HealOptions
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
from shortviz.cli_session import INTERRUPTED, load_model, print_result, warn_same_text, working
from shortviz.errors import PlanError, RunError, ShortvizError

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle
    from shortviz.heal_settings import HealHistory, HealSettings
    from shortviz.healing import Healed
    from shortviz.ledger import Ledger
    from shortviz.records import (
        Evaluation,
        ExportReport,
        OnProgress,
        TextSpec,
        TokenSet,
        WindowSpec,
    )

_CHECKPOINT = "heal-checkpoint.safetensors"
"""In the run directory, while a training is unfinished."""
HELD_OUT_WINDOWS = 8
"""Windows at the end of the training text that choose the best step."""
REPAIR_ROWS, REPAIR_LENGTH = 64, 256
"""What `--repair` is fitted on: the first 16k tokens of the training text."""


@with_options
def heal_command(
    model: ModelArgument,
    plan: PlanOptions,
    load: LoadOptions,
    text: TextOptions,
    evaluation: EvaluationOptions,
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

    The text options say what is trained on (its end is held out), --eval-... what is scored on. On several devices:
    accelerate launch -m shortviz heal MODEL --remove 12-15 ...
    """
    from shortviz.heal_data import ALL_TOKENS
    from shortviz.texts import DEFAULT_CALIBRATION, DEFAULT_EVALUATION

    chosen = plan.chosen()
    if chosen is None:
        raise PlanError("Nothing says what to remove; give --start and --n, --remove or --plan.")
    if adapter is not None and recipe.method == "partial":
        raise ShortvizError("Partial fine-tuning makes no adapter; leave --adapter out, or choose method lora.")
    _check_folders(repair, out, export, adapter)
    recipe.settings(None, text.seed)
    text.note_unused("batch_size")
    spec = text.spec(replace(DEFAULT_CALIBRATION, limit=None))
    spec = readable(replace(spec, max_length=text.max_length or ALL_TOKENS))
    scored_on = readable(evaluation.spec(DEFAULT_EVALUATION, spec.bos))
    warn_same_text(spec, scored_on)
    with working() as (on_progress, stop), _together(load) as (load, is_main):
        handle = load_model(load.ref(model), on_progress, stop, removes=chosen)
        work = _Work(handle, spec, scored_on, text.window_spec(), recipe.settings(handle.info, text.seed))
        work.on_progress, work.stop = on_progress, stop
        work.cut_out(chosen.of(handle.info.num_layers), repair, is_main)
        healed = work.train(out if is_main else None)
        if not is_main:
            return
        ledger, scored = work.score(healed)
        stopped = stop.is_set() and not healed.history.complete
        report = None
        if not stopped:
            report = work.write(healed, scored, export, adapter)
    if out is not None:
        _save(out, work, ledger, keep_checkpoint=stopped)
    print_result(_json(healed, ledger, report) if as_json else _text(healed, ledger, report, adapter))
    if stopped:
        advice = "run the same command again to go on" if out is not None else "with --out it could go on from there"
        print(f"{healed.history.note} Nothing was written; {advice}.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def _check_folders(repair: str | None, out: Path | None, export: Path | None, adapter: Path | None) -> None:
    from shortviz.checkpoint_folder import check_target

    given = [folder.resolve() for folder in (out, export, adapter) if folder is not None]
    if twice := next((folder for folder in given if given.count(folder) > 1), None):
        raise ShortvizError(f"{twice} was given twice; give --out, --export and --adapter a folder each.")
    for folder in (export, adapter):
        if folder is not None:
            check_target(folder)
    if repair is not None:
        from shortviz.repair import METHODS

        if repair not in METHODS:
            raise PlanError(f"There is no repair called {repair!r}; choose {', '.join(METHODS)}.")
        if repair == "linear_replacement":
            raise PlanError("A linear_replacement has no place in a stock model; choose linear_fold to heal after it.")


class _together:  # noqa: N801  # a context manager used like a function
    """Join the other processes of `accelerate launch`; gives (load options for this process's device, is it the first).

    Alone, nothing happens.
    """

    def __init__(self, load: LoadOptions) -> None:
        self._load = load
        self._state: Any = None

    def __enter__(self) -> tuple[LoadOptions, bool]:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return self._load, True
        import torch
        from accelerate import PartialState

        self._state = PartialState(cpu=self._load.device == "cpu" or not torch.cuda.is_available())
        on = self._state.device
        device = "cpu" if on.type == "cpu" else str(on)
        return replace(self._load, device=device), bool(self._state.is_main_process)

    def __exit__(self, *_: object) -> None:
        if self._state is not None:
            self._state.destroy_process_group()


class _Work:
    """One healing on the command line, step by step."""

    def __init__(
        self,
        handle: "ModelHandle",
        training: "TextSpec",
        scored_on: "TextSpec",
        windows: "WindowSpec",
        settings: "HealSettings",
    ) -> None:
        from shortviz.heal_data import split_heldout
        from shortviz.texts import make_windows, tokenize

        self.base, self.settings = handle, settings
        tokens = tokenize(training, handle.tokenizer)
        self.tokens, self.heldout = split_heldout(tokens, windows=HELD_OUT_WINDOWS, window=settings.length)
        self.windows = make_windows(scored_on, windows, handle.tokenizer)
        self.on_progress: OnProgress
        self.stop: threading.Event
        self.ledger: Ledger

    def cut_out(self, plan: Any, repair: str | None, score: bool) -> None:
        """Remove the layers, repair where asked to, and begin the ledger."""
        from shortviz import pruning
        from shortviz.ledger_steps import add_step, start_ledger
        from shortviz.losses import BaseScores

        self.cut = self.start = pruning.prune(self.base, plan)
        self.base_scores = BaseScores(self.base)
        if score:
            self.scored = self._evaluate(self.cut)
            self.ledger = start_ledger(self.scored)
        if repair is None:
            return
        from shortviz.repair import repair as repair_cut

        done = repair_cut(
            self.cut, self.base, self._repair_rows(), method=repair, on_progress=self.on_progress, stop=self.stop
        )
        if not done.applied:
            print(f"The repair was not applied. {done.treatment.note}", file=sys.stderr)
            return
        self.start = done.handle
        if score:
            self.scored = self._evaluate(self.start)
            self.ledger = add_step(self.ledger, "repaired", self.scored, self.start.treatments)

    def _repair_rows(self) -> "TokenSet":
        from shortviz.heal_data import pack, part_of

        return part_of(self.tokens, tuple(pack(self.tokens, REPAIR_LENGTH, ())[:REPAIR_ROWS]))

    def _evaluate(self, handle: "ModelHandle", stop: threading.Event | None = None) -> "Evaluation":
        from shortviz.losses import evaluate

        return evaluate(
            handle,
            self.windows,
            base=self.base,
            base_scores=self.base_scores,
            on_progress=self.on_progress,
            stop=stop or self.stop,
        )

    def train(self, out: Path | None) -> "Healed":
        """Return what training made of the start; its checkpoint is in the run directory."""
        from shortviz.healing import heal

        if out is not None:
            _check_run(out, self.base.info.id)
        return heal(
            self.start,
            self.tokens,
            self.settings,
            base=self.base,
            heldout=self.heldout,
            checkpoint=out / _CHECKPOINT if out is not None else None,
            on_progress=self.on_progress,
            stop=self.stop,
        )

    def score(self, healed: "Healed") -> "tuple[Ledger, Evaluation]":
        """Return the ledger with its last step; what a stop left is scored all the same."""
        from shortviz.ledger_steps import add_step

        scored = self._evaluate(healed.handle, threading.Event())
        return add_step(self.ledger, "healed", scored, healed.handle.treatments), scored

    def write(
        self, healed: "Healed", scored: "Evaluation", export: Path | None, adapter: Path | None
    ) -> "ExportReport | None":
        """Write what is wanted, and return the export's report."""
        if adapter is not None and healed.adapter is not None:
            from shortviz.heal_adapter import export_adapter

            export_adapter(healed.adapter, adapter)
        if export is None:
            return None
        from shortviz.export import export_checkpoint

        return export_checkpoint(
            healed.handle,
            export,
            base_info=self.base.info,
            evaluation=scored,
            on_progress=self.on_progress,
            stop=self.stop,
        )


def _check_run(out: Path, model: str) -> None:
    from shortviz import runs

    if (out / runs.FILE).is_file() and (found := runs.load_run(out).model.id) != model:
        raise RunError(f"{out} holds a run of {found}, not of {model}; choose another --out.")


def _save(out: Path, work: _Work, ledger: "Ledger", *, keep_checkpoint: bool) -> None:
    from shortviz import runs

    known = (out / runs.FILE).is_file()
    run = runs.load_run(out) if known else runs.new_run(work.base.info, work.tokens.info)
    runs.save_run(runs.with_ledger(run, ledger), out)
    if not keep_checkpoint:
        (out / _CHECKPOINT).unlink(missing_ok=True)


def _json(healed: "Healed", ledger: "Ledger", report: "ExportReport | None") -> dict[str, Any]:
    from shortviz.recipes import prune_json
    from shortviz.record_json import finite, ledger_json, treatment_json

    return {
        "ledger": ledger_json(ledger),
        "treatment": treatment_json(healed.treatment),
        "history": finite(asdict(healed.history)),
        "export": None if report is None else prune_json(report),
    }


def _text(healed: "Healed", ledger: "Ledger", report: "ExportReport | None", adapter: Path | None) -> str:
    from shortviz.cli_ledger_output import ledger_text
    from shortviz.cli_output import export_text

    lines = [ledger_text(ledger), _trained(healed.history, healed.treatment.settings)]
    if adapter is not None and healed.adapter is not None:
        lines.append(f"The adapter alone is in {adapter}.")
    return "\n".join([*lines, *([] if report is None else [export_text(report)])])


def _trained(history: "HealHistory", settings: Any) -> str:
    rates = sorted(p.tokens_per_second for p in history.points if p.tokens_per_second)
    speed = f", {rates[len(rates) // 2]:,.0f} tokens a second" if rates else ""
    return (
        f"Trained {settings['trained_parameters']:,} parameters, {history.points[-1].step} of {history.steps} "
        f"steps{speed}; held-out NLL {history.start_nll:.4f} before, {history.best_nll:.4f} at step "
        f"{history.best_step}, which is kept ({settings['heldout_text']})."
    )
