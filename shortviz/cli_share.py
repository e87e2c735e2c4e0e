"""The commands that take results to others: `shortviz report`, `push` and `app`. Heavy imports wait inside."""

import os
from pathlib import Path
from typing import Annotated

import typer

from shortviz.cli_options import JsonOption
from shortviz.cli_session import print_result, working
from shortviz.errors import ExportError, ShortvizError

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def report(
    run: RunArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The HTML file to write; an older report is replaced.")],
    criterion: Annotated[
        str, typer.Option(help="The criterion to draw.  [default: angular_last, where it was measured]")
    ] = "",
) -> None:
    """Write a saved run as one HTML file: maps, curve, tables, citations; it needs no network."""
    from shortviz.report import write_report
    from shortviz.runs import load_run
    from shortviz.words import size

    write_report(load_run(run), out, criterion=criterion)
    print_result(f"Wrote {out} ({size(out.stat().st_size)}); it opens in any browser and loads nothing.")


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A checkpoint that `shortviz prune` wrote.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name on the hub.")],
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see a new repository.")] = True,
    token_env: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable that holds the token.")
    ] = "HF_TOKEN",
    as_json: JsonOption = False,
) -> None:
    """Push a proved checkpoint with its card to the Hugging Face hub.

    The token is read from an environment variable, so that it stands in no command line; without one, that of
    `hf auth login` is used.
    """
    from shortviz.hub_push import Destination, push_folder, push_text

    to = Destination(repo_id=repo_id, token=_token(token_env), private=private)
    with working() as watch:
        found = push_folder(folder, to, watch=watch)
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

    from shortviz.hosting import server_command, server_environment
    from shortviz.settings import settings

    if not 0 <= port <= 65535:
        raise ShortvizError(f"--port is {port}; it must be 1 to 65535, or 0 for one that is free.")
    root, rules = Path(__file__).resolve().parents[1], settings()
    if not (root / "app.py").is_file():
        raise ShortvizError(f"The app's files are not at {root}; run this from a checkout (see the README).")
    command = server_command(rules, root, host, port)
    environment = server_environment(rules)
    if os.name == "nt":  # has no exec that keeps the process
        raise typer.Exit(subprocess.run(command, cwd=root, env=environment, check=False).returncode)
    # In place of this process, so that whoever ends the process ends the server: SIGTERM reaches no child of it.
    os.chdir(root)
    os.execve(command[0], command, environment)
