"""The commands that open no model: `shortviz advise`, from what a run holds, `report`, `push`, and `app`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from shortviz.cli.options import JsonOption
from shortviz.cli.session import print_result, working
from shortviz.errors import ExportError, ShortvizError
from shortviz.records.advice import Advice, Budget, Candidate, parse_bytes
from shortviz.records.formatting import (
    count,
    counted,
    layers_text,
    percent,
    size,
)
from shortviz.records.json import plain
from shortviz.service.execute import execute
from shortviz.service.place import Place
from shortviz.service.requests import PushRequest

_SHOWN_TIES = 4


def advise_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    layers: Annotated[int | None, typer.Option(help="Remove at least so many layers.")] = None,
    max_bytes: Annotated[
        str | None, typer.Option("--bytes", help="Weights of at most this size, e.g. 400MB or 1.5GB.")
    ] = None,
    max_increase: Annotated[
        float | None, typer.Option(help="Remove as much as possible while the NLL rises by at most so many nats.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Propose what to cut for a budget, from what the run has measured, and say how sure that is."""
    from shortviz.analysis.advice import advise
    from shortviz.runs.run import load_run

    wanted = None if max_bytes is None else parse_bytes(max_bytes)
    budget = Budget(layers=layers, bytes=wanted, max_increase=max_increase)
    found = advise(load_run(run), budget)
    print_result(advice_json(found) if as_json else advice_text(found))


def advice_text(advice: Advice) -> str:
    """Return the advice in sentences: what to do, what it costs, what it leaves, and how sure that is."""
    lines = [f"{what_to_do(advice.plan)}: {cost(advice.plan) if advice.measured else 'its loss was not measured'}."]
    left = size(advice.bytes)
    lines.append(f"Leaves {count(advice.parameters)} parameters, {left}; compared with {_others(advice)}.")
    if advice.ties:
        lines.append(f"Not told apart from it on this text (two errors): {tie_words(advice)}.")
    if advice.expected is not None:
        low, high = advice.expected
        share = percent(low) if low == high else f"{percent(low)} to {percent(high)}"
        how = _words(advice.expected_method)
        lines.append(f"Not repaired yet: {how} of other cuts in this run won back {share} of what they lost.")
    return "\n".join([*lines, *advice.notes])


def what_to_do(plan: Candidate) -> str:
    """Return `Remove layers 12-15 (4 layers), then seam refit`."""
    what = "layer" if len(plan.removed) == 1 else f"{len(plan.removed)} layers,"
    then = "".join(f", then {_words(method)}" for method in plan.methods)
    return f"Remove {what} {layers_text(plan.removed)}{then}"


def cost(plan: Candidate) -> str:
    """Return what the plan costs, with its error and the text behind it."""
    source = plan.text.source if plan.text is not None else "unknown text"
    return (
        f"NLL {plan.cost} nats a token ({plan.source}, "
        f"{counted(plan.tokens, 'token')} in {counted(plan.windows, 'window')} of {source})"
    )


def tie_words(advice: Advice) -> str:
    """Return the tied plans, the first few by name."""
    shown = [f"{what_to_do(plan)[7:]} ({plan.cost})" for plan in advice.ties[:_SHOWN_TIES]]
    more = len(advice.ties) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def _others(advice: Advice) -> str:
    return f"{advice.compared - 1} other measured plans that fit" if advice.measured else "no measured plan"


def _words(method: str) -> str:
    return method.replace("_", " ")


def advice_json(advice: Advice) -> dict[str, Any]:
    """Return the advice as one JSON object, without the loss of each window; its shape is stable."""
    found: dict[str, Any] = plain(advice)
    for plan in (found["plan"], *found["ties"]):
        del plan["window_nll"]
    return found


# The commands that take results to others: `shortviz report`, `push` and `app`. Heavy imports wait inside.

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def report(
    run: RunArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The HTML file to write; an older report is replaced.")],
    criterion: Annotated[
        str, typer.Option(help="The criterion to draw.  [default: angular_last, where it was measured]")
    ] = "",
) -> None:
    """Write a saved run as one HTML file: maps, curve, tables, citations; it needs no network."""
    from shortviz.records.formatting import size
    from shortviz.runs.report import write_report
    from shortviz.runs.run import load_run

    write_report(load_run(run), out, criterion=criterion)
    print_result(f"Wrote {out} ({size(out.stat().st_size)}); it opens in any browser and loads nothing.")


def push(
    request: PushRequest,
    token_env: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable that holds the token.")
    ] = "HF_TOKEN",
    as_json: JsonOption = False,
) -> None:
    """Push a proved checkpoint with its card to the Hugging Face hub.

    The token is read from an environment variable, so that it stands in no command line; without one, that of
    `hf auth login` is used.
    """
    from shortviz.export.push import push_text

    place = Place(None)
    place.token = _token(token_env)
    with working() as watch:
        found = execute(request, watch, place=place)
    print_result(found if as_json else push_text(found))


def _token(name: str) -> str:
    """Return the token; raises ExportError where there is none."""
    from huggingface_hub import get_token

    found = os.environ.get(name) or (get_token() if name == "HF_TOKEN" else None)
    if not found:
        raise ExportError(
            f"There is no token in the environment variable {name}; put one with write access there, or log in with "
            "`hf auth login`."
        )
    return found


def start_app(
    port: Annotated[int, typer.Option(help="Port of the app.")] = 8501,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")] = "localhost",
) -> None:
    """Start the app, at http://localhost:8501 unless told otherwise; with SHORTVIZ_HOSTED=1, for strangers."""
    import subprocess

    from shortviz.server.start import server_command, server_environment
    from shortviz.settings import settings

    if not 0 <= port <= 65535:
        raise ShortvizError(f"--port is {port}; it must be 1 to 65535, or 0 for one that is free.")
    rules = settings()
    command, environment = server_command(rules, host, port), server_environment(rules)
    if os.name == "nt":  # has no exec that keeps the process
        raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)
    # In place of this process, so that whoever ends the process ends the server: SIGTERM reaches no child of it.
    os.execve(command[0], command, environment)
