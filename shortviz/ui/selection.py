"""What the browser says was chosen, checked: a block of the model, or nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from shortviz.errors import PlanError
from shortviz.records import Block


def parse_selection(event: Any, num_layers: int) -> Block | None:
    """Return the block of a click on the map; None where nothing was clicked or the browser sent something else.

    An empty event is not "choose nothing": a second click on a cell, a double click and a redraw all send one.
    """
    points = _field(_field(event, "selection"), "points")
    if not _is_list(points) or not points:
        return None
    custom = _field(points[0], "customdata")
    if not _is_list(custom) or len(custom) < 2:
        return None
    return checked_block(custom[0], custom[1], num_layers)


def parse_cell(event: Any, num_layers: int, row_n: Sequence[int]) -> Block | None:
    """Return the block of a cell chosen in the table: row position `row_n[i]` is n, the column's name is the start."""
    cells = _field(_field(event, "selection"), "cells")
    if not _is_list(cells) or not cells or not _is_list(cells[0]) or len(cells[0]) != 2:
        return None
    row, column = cells[0]
    if not isinstance(row, int) or not 0 <= row < len(row_n):
        return None
    return checked_block(str(column), row_n[row], num_layers)


def parse_row(event: Any, blocks: Sequence[Block]) -> Block | None:
    """Return the block of a row chosen in the table of best blocks."""
    rows = _field(_field(event, "selection"), "rows")
    if not _is_list(rows) or not rows or not isinstance(rows[0], int) or not 0 <= rows[0] < len(blocks):
        return None
    return blocks[rows[0]]


def checked_block(start: Any, n: Any, num_layers: int) -> Block | None:
    """Return the block where both are whole numbers inside the model, else None."""
    try:
        return Block(start=int(start), n=int(n)).check(num_layers)
    except (TypeError, ValueError, PlanError):
        return None


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
