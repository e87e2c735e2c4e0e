"""The pieces of a report: a page that loads nothing, tables, figures. Everything from outside is escaped. No torch."""

from collections.abc import Sequence
from html import escape
from typing import Any

MARK = "<!-- a report by shortviz -->"
"""Stands in every report, so that writing one over another is safe and over anything else is refused."""

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""The browser itself then keeps the page from fetching anything."""

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#16212c;background:#fff;max-width:1000px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin:2rem 0 .4rem}p{margin:.4rem 0}
figure{margin:0}figcaption,.note{color:#4a5a68;font-size:.9rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem}
caption{text-align:left;font-weight:600;padding:.4rem 0}
th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #d5dde5;white-space:nowrap}
th{background:#f3f6f9}td:last-child,th:last-child,tbody th,th:first-child{text-align:left}tbody th{font-weight:400}
pre{background:#f3f6f9;padding:.8rem;overflow-x:auto;font-size:.85rem}summary{cursor:pointer;margin:.4rem 0}
@media print{details{display:block}body{margin:0}}
"""


def page(title: str, parts: Sequence[str]) -> str:
    """Return a whole page; `parts` are HTML already."""
    return (
        f'<!doctype html>\n{MARK}\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def paragraph(text: str, *, note: bool = False) -> str:
    """Return a paragraph of plain text."""
    return f'<p class="note">{escape(text)}</p>' if note else f"<p>{escape(text)}</p>"


def heading(text: str, level: int = 2) -> str:
    """Return a heading of plain text."""
    return f"<h{level}>{escape(text)}</h{level}>"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of plain texts; its first column names the row, its last is words or one more number."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>'
        for name, *row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(caption: str, rows: Sequence[tuple[str, str]]) -> str:
    """Return names and values of one thing, one a line."""
    lines = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f"<table><caption>{escape(caption)}</caption><tbody>{lines}</tbody></table>"


def folded(summary: str, inside: str) -> str:
    """Return HTML that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def code(text: str) -> str:
    """Return text as it is, in a box."""
    return f"<pre><code>{escape(text)}</code></pre>"


class Figures:
    """Turns Plotly figures into HTML; the first one brings the one copy of plotly.js with it."""

    def __init__(self) -> None:
        """Begin a page without any."""
        self._count = 0

    def draw(self, figure: Any, words: str, height: int = 460) -> str:
        """Return a figure with what it shows in words, for those who do not see it and for print."""
        from plotly.io import to_html

        self._count += 1
        figure.update_layout(height=height, paper_bgcolor="#ffffff", plot_bgcolor="#ffffff")
        drawn = to_html(
            figure,
            full_html=False,
            include_plotlyjs=self._count == 1,
            include_mathjax=False,
            div_id=f"figure-{self._count}",
            config={
                "displaylogo": False,
                "responsive": True,
                "toImageButtonOptions": {"format": "svg", "filename": f"shortviz-{self._count}"},
            },
        )
        return (
            f'<figure><div role="img" aria-label="{escape(words)}">{drawn}</div>'
            f"<figcaption>{escape(words)}</figcaption></figure>"
        )
