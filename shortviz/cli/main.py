"""The command line: `shortviz measure | map | curve | advise | evaluate | prune | show | app`, heavy imports inside.

Exit codes: 0 done; 2 bad input, one sentence on stderr; 1 our fault; 130 stopped with Ctrl-C (what there is, is saved).
"""

import io
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from shortviz import __version__
from shortviz.cli import measure, treat
from shortviz.cli import runs as cli_advise
from shortviz.cli import runs as cli_share
from shortviz.cli.options import (
    JsonOption,
    LoadOptions,
    ModelArgument,
    PlanOptions,
    TaskOptions,
    TextOptions,
    readable,
    request_command,
    with_options,
)
from shortviz.cli.session import INTERRUPTED, load_model, print_result, refuse_launcher, run_command, working
from shortviz.errors import Stopped

app = typer.Typer(
    name="shortviz",
    help="See which layers of a language model are redundant, prove it, and cut them out.",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale without ± must not cost the numbers
    sys.exit(run_command(app, sys.argv[1:] if arguments is None else arguments))


def _print_version(asked: bool) -> None:
    if asked:
        print(f"shortviz {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error; works anywhere.")] = False,
) -> None:
    """Options that belong to no command. `run_command` has already taken --debug out of the arguments."""


app.command("measure")(measure.measure)


@app.command()
@with_options
def evaluate(
    model: ModelArgument,
    plan: PlanOptions,
    load: LoadOptions,
    text: TextOptions,
    task: TaskOptions,
    adapter: treat.AdapterOption = None,
    stream: measure.StreamOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure perplexity, of the model or with layers removed; with --tasks, multiple-choice accuracy too.

    With --adapter the healed model is measured: MODEL is the uncut one, or the checkpoint of the cut. With layers to
    remove, the uncut model is measured on the same windows and questions for comparison.
    """
    from shortviz.cli.measure import complete, score_both, scores_json, scores_text
    from shortviz.cli.output import evaluation_text
    from shortviz.records.measured import evaluation_json
    from shortviz.text import tokens
    from shortviz.text.questions import read_task

    text.note_unused("max_length", "batch_size", "seed")
    chosen = plan.chosen()
    spec = readable(text.spec(tokens.DEFAULT_EVALUATION))
    windows = text.window_spec()
    asked = task.task()
    questions = read_task(asked) if asked is not None else None
    scores = None
    with working(shared=True) as watch:
        from shortviz.measure import losses
        from shortviz.model import prune as pruning

        ref = load.ref(model)
        if measure.streams(ref, stream):
            measure.check_streamable(task=questions is not None, adapter=adapter is not None)
            evaluation = measure.streamed_evaluations(ref, text, [chosen] if chosen else [], watch)[0]
        else:
            refuse_launcher()
            handle = load_model(ref, watch, removes=chosen)
            window_set = tokens.make_windows(spec, windows, handle.tokenizer)
            chosen = treat.adapter_cut(adapter, chosen, handle.info.num_layers)
            pruned = None
            if chosen is not None:
                pruned = pruning.prune(handle, chosen.of(handle.info.num_layers))
                pruned = treat.with_adapter(pruned, adapter)
            else:
                handle = treat.with_adapter(handle, adapter)
            base = None if pruned is None else handle
            evaluation = losses.evaluate(pruned or handle, window_set, base=base, watch=watch)
            if questions is not None and not watch.stopped:
                with suppress(Stopped):  # the evaluation is there, and is not to be lost
                    scores = score_both(handle, pruned, questions, watch)
    if as_json:
        print_result(evaluation_json(evaluation) | scores_json(scores))
    else:
        print_result("\n".join([evaluation_text(evaluation), *scores_text(scores)]))
    if not evaluation.complete:
        print(f"Stopped after {evaluation.score.windows} of {evaluation.text.rows} windows.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if questions is not None and (scores is None or not complete(scores)):
        print("Stopped before every question was scored by every model.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


app.command("prune")(request_command(treat.prune))
app.command("estimate")(measure.estimate)
app.command("map")(measure.measured_map)
app.command("repair")(request_command(treat.repair))
app.command("shrink")(request_command(treat.shrink))
app.command("curve")(measure.removal_curve)
app.command("heal")(request_command(treat.heal))
app.command("advise")(cli_advise.advise_command)
app.command("compare")(measure.compare)
app.command("sensitivity")(measure.sensitivity)
app.command("report")(cli_share.report)
app.command("push")(request_command(cli_share.push))


@app.command()
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every block as CSV.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print a saved run: best blocks, evaluations, the measured map and how well it was predicted, ledgers."""
    from shortviz.cli.output import ledger_text, losses_text, run_text, scored_text
    from shortviz.runs import run as runs

    found = runs.load_run(run)
    if as_csv:
        from shortviz.runs.report import block_csv

        print_result(block_csv(found).rstrip("\n"))
        return
    measured = [losses_text(found, found.losses, "nll")] if found.losses is not None else []
    measured += [*scored_text(found), *(ledger_text(ledger) for ledger in found.ledgers)]
    print_result(found if as_json else "\n\n".join([run_text(found), *measured]))


@app.command()
def schema() -> None:
    """Print the JSON schema of a run, as run.json and `--json` hold it."""
    from shortviz.records.json import adapter
    from shortviz.records.run import Run

    print_result(adapter(Run).json_schema())


app.command("app")(cli_share.start_app)
