"""TEMPORARY stub of the other half."""

from typing import Any

AdapterOption = Any


def repair_command() -> None:
    """Stub."""


shrink_command = heal_command = repair_command
