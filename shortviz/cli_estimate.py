"""The command `shortviz estimate`: what a model takes, before it is loaded. Heavy imports wait inside."""

from typing import TYPE_CHECKING, Annotated

import typer

from shortviz.cli_numbers import at_least
from shortviz.cli_options import JsonOption, LoadOptions, ModelArgument, with_options
from shortviz.cli_session import print_result, working

if TYPE_CHECKING:
    from shortviz.streamed_model import StreamingEstimate


@with_options
def estimate(
    model: ModelArgument,
    load: LoadOptions,
    rows: Annotated[int, typer.Option(help="Rows of text, whose states are kept while streaming.")] = 64,
    max_length: Annotated[int, typer.Option(help="Tokens of a row.")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Predict the memory and disk that a model takes, whole and streamed, from its config and weight headers."""
    at_least(1, rows=rows)
    at_least(2, max_length=max_length)
    with working():
        from shortviz.streamed_model import estimate_streaming

        found = estimate_streaming(load.ref(model), rows=rows, row_tokens=max_length)
    print_result(_json(found) if as_json else _text(found))


def _json(found: "StreamingEstimate") -> dict[str, object]:
    size = {f"size_{name}": getattr(found.size, name) for name in ("id", "parameters", "memory_bytes", "fits", "dtype")}
    names = ("streamed_memory_bytes", "states_bytes", "disk_bytes")
    work = {"rows": found.rows, "row_tokens": found.row_tokens}
    return size | {name: getattr(found, name) for name in names} | {"work": work}


def _text(found: "StreamingEstimate") -> str:
    from shortviz.cli_output import estimate_line
    from shortviz.words import size

    whole = found.size
    fits = "fits" if whole.fits else "does not fit, and would be streamed"
    lines = [
        estimate_line(whole),
        f"memory   whole {size(whole.memory_bytes)}, {size(whole.available_bytes)} is free: it {fits}; streamed "
        f"{size(found.streamed_memory_bytes)} of weights and up to {size(found.states_bytes)} of states "
        f"({found.rows} rows of {found.row_tokens} tokens), in memory or in a file",
        f"disk     {size(found.disk_bytes)} for an export of all layers",
    ]
    return "\n".join(lines)
