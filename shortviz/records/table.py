"""A table as a record: built once, written for a terminal, as Markdown, and by a template as HTML. No torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Literal


@dataclass(frozen=True, slots=True)
class Column:
    """What stands above a column's cells, and on which side they begin."""

    heading: str
    align: Literal["left", "right"] = "right"


def left(*headings: str) -> tuple[Column, ...]:
    """Return columns of words."""
    return tuple(Column(heading, "left") for heading in headings)


def right(*headings: str) -> tuple[Column, ...]:
    """Return columns of numbers."""
    return tuple(map(Column, headings))


@dataclass(frozen=True, slots=True)
class Table:
    """Cells in rows under the headings of their columns; a table of facts has headings that are all empty."""

    columns: tuple[Column, ...]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    @property
    def headings(self) -> list[str]:
        """What stands above the columns."""
        return [column.heading for column in self.columns]

    def without_empty(self) -> "Table":
        """Return the table without the columns that hold nothing."""
        kept = [i for i in range(len(self.columns)) if any(row[i] for row in self.rows)]
        return Table(tuple(self.columns[i] for i in kept), [[row[i] for i in kept] for row in self.rows], self.caption)

    def text(self) -> str:
        """Return the table for a terminal, however wide: nothing is folded, so that lines can be cut and searched."""
        from rich.console import Console  # a twentieth of a second, which no import need wait for
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(box=None, pad_edge=False, show_header=any(self.headings))
        for column in self.columns:
            grid.add_column(Text(column.heading), justify=column.align, no_wrap=True)
        for row in self.rows:
            grid.add_row(*map(Text, row))
        written = StringIO()
        Console(file=written, width=100_000, color_system=None).print(grid)
        return "\n".join(line.rstrip() for line in written.getvalue().splitlines())

    def markdown(self) -> str:
        """Return the table for Markdown; cells may hold markup, a bar in them is no border."""
        rule = ["---" if column.align == "left" else "---:" for column in self.columns]
        lines = [self.headings, *self.rows]
        shown = ["| " + " | ".join(re.sub(r"(?<!\\)\|", r"\|", cell) for cell in line) + " |" for line in lines]
        return "\n".join([shown[0], f"|{'|'.join(rule)}|", *shown[1:]])
