"""The commands that take results elsewhere: `shortviz report`. Heavy imports wait inside."""

from pathlib import Path
from typing import Annotated

import typer

from shortviz.cli_session import print_result

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
