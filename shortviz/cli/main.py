"""The command line: every command with its options, and the exit code of each outcome; heavy imports inside.

Exit codes: 0 done; 2 bad input, one sentence on stderr; 3 a gate that was not held; 1 our fault; 130 stopped with
Ctrl-C (what there is, is saved).
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from shortviz import __version__
from shortviz.cli import measure, runs, treat
from shortviz.cli.options import JsonOption, request_command
from shortviz.cli.session import print_result, run_command
from shortviz.service.requests import Request

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


app.command("measure")(request_command(measure.measure))
app.command("evaluate")(request_command(measure.evaluate))
app.command("estimate")(request_command(measure.estimate))
app.command("map")(request_command(measure.measured_map, choose=measure.choose_map, model=measure.MODEL_OR_RUN))
app.command("prune")(request_command(treat.prune))
app.command("repair")(request_command(treat.repair))
app.command("shrink")(request_command(treat.shrink))
app.command("curve")(request_command(measure.removal_curve, model=measure.MODEL_OR_RUN))
app.command("heal")(request_command(treat.heal))
app.command("evidence")(request_command(treat.evidence))
app.command("advise")(runs.advise_command)
app.command("compare")(measure.compare)
app.command("sensitivity")(request_command(measure.sensitivity))
app.command("report")(runs.report)
app.command("push")(request_command(runs.push))


@app.command()
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every block as CSV.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print a saved run: best blocks, evaluations, the measured map and how well it was predicted, ledgers."""
    from shortviz.cli.output import evidence_text, ledger_text, losses_text, run_text, scored_text
    from shortviz.runs.run import load_run

    found = load_run(run)
    if as_csv:
        from shortviz.runs.report import block_csv

        print_result(block_csv(found).rstrip("\n"))
        return
    measured = [losses_text(found, found.losses, "nll")] if found.losses is not None else []
    measured += [*scored_text(found), *(ledger_text(ledger) for ledger in found.ledgers)]
    measured += [evidence_text(ledger, found.model) for ledger in found.ledgers if ledger.probes]
    print_result(found if as_json else "\n\n".join([run_text(found), *measured]))


@app.command()
def schema() -> None:
    """Print the JSON schema of a run, as run.json and `--json` hold it."""
    from shortviz.records.json import adapter
    from shortviz.records.run import Run

    print_result(adapter(Run).json_schema())


app.command("app")(runs.start_app)


def parse(words: Sequence[str]) -> Request:
    """Return the request of a command line, `shortviz` left out; raises what the command would."""
    name, *rest = words
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    found = next(info.callback for info in app.registered_commands if info.name == name)
    with command.make_context(name, list(rest)) as context:
        request: Request = found.build(context.params)  # type: ignore[union-attr]
    return request
