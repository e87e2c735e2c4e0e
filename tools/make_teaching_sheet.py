"""Write docs/teaching.md from its template and the bundled numbers: `python tools/make_teaching_sheet.py`."""

from pathlib import Path

from shortviz.lessons.data import lesson_data
from shortviz.lessons.facts import facts
from shortviz.runs.run import example_run

TOOLS = Path(__file__).resolve().parent
TEMPLATE, SHEET = TOOLS / "teaching_template.md", TOOLS.parent / "docs" / "teaching.md"


def sheet() -> str:
    """Return the whole sheet."""
    return TEMPLATE.read_text(encoding="utf-8").format(**facts(example_run(), lesson_data()))


if __name__ == "__main__":
    SHEET.write_text(sheet(), encoding="utf-8")
