"""What the tests of several commands write for them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def question_file(tmp_path: Path) -> Callable[[Sequence[Mapping[str, Any]]], str]:
    """Writes multiple-choice rows to a file; gives back its path."""

    def write(rows: Sequence[Mapping[str, Any]]) -> str:
        file = tmp_path / "questions.jsonl"
        file.write_text("\n".join(json.dumps(row) for row in rows))
        return str(file)

    return write
