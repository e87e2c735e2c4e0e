"""Numbers of the command line: refused before a model is loaded, and what was typed apart from what is a default."""

from collections.abc import Mapping
from typing import Any

import typer

from shortviz.errors import ShortvizError

LARGEST = 2**63 - 1
"""What 64 bits hold: Python's numbers are endless, and torch, numpy and a file's fields are not."""


def option(name: str) -> str:
    """Return how a parameter is written: `--batch-size` for `batch_size`."""
    return "--" + name.replace("_", "-")


def refuse_huge(values: Mapping[str, Any]) -> None:
    """Raise ShortvizError for a whole number, by parameter, that no 64 bits hold."""
    for name, value in values.items():
        if isinstance(value, int) and abs(value) > LARGEST:
            digits = len(str(abs(value)))
            raise ShortvizError(f"{option(name)} is a number of {digits} digits; give at most {LARGEST}.")


def at_least(least: int, **values: int | None) -> None:
    """Raise ShortvizError for a number, by parameter, below `least`; None is an option that was left out."""
    for name, value in values.items():
        if value is not None and value < least:
            raise ShortvizError(f"{option(name)} is {value}; it must be at least {least}.")


def typed(context: typer.Context) -> frozenset[str]:
    """Return the parameters that stand on the command line; the others have their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")
