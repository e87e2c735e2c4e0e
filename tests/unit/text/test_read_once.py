"""A text is read once: what was checked before a model is loaded is what is then turned into tokens."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from shortviz.cli.main import app
from shortviz.cli.session import run_command
from tests.support.families import build_tiny, tiny_tokenizer
from tests.support.hub_server import hub_server
from tests.support.paths import ROOT

LINES = [
    {"text": f"row {i} of a text that is long enough to be trained on, word after word after word"} for i in range(40)
]


READ = """
from shortviz.records.text import TextSpec
from shortviz.text.sources import read_rows
read_rows(TextSpec(kind="dataset", value="org/rows"))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_tiny("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("measure",), "text.jsonl"),
        (("measure",), "text.csv"),
        (("measure",), "text.parquet"),
        (("evaluate", "--window", "16", "--windows", "2"), "text.txt"),
        (("evaluate", "--window", "16", "--windows", "2", "--stream"), "text.jsonl"),
        (("sensitivity", "--builtin", "passages/prose", "--limit", "2"), "text.jsonl"),
    ],
)
def test_a_file_is_opened_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], name: str
) -> None:
    path, table = tmp_path / name, pd.DataFrame(LINES)
    {
        ".jsonl": lambda: path.write_text("\n".join(map(json.dumps, LINES))),
        ".csv": lambda: table.to_csv(path, index=False),
        ".parquet": lambda: table.to_parquet(path),
        ".txt": lambda: path.write_text(LINES[0]["text"] * 20),
    }[path.suffix]()
    seen, own = Counter[str](), Path.open

    def counted(self, *arguments, **options):
        seen[str(self)] += 1
        return own(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", counted)
    out = ("--out", str(tmp_path / "runs")) if command[0] == "sensitivity" else ()
    assert run_command(app, [command[0], str(model), "--text", str(path), *command[1:], *out]) == 0
    assert seen[str(path)] == 1


def test_a_data_set_is_fetched_once(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "train.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    arguments = (
        *("heal", str(model), "--start", "2", "--n", "2", "--dataset", "org/rows", "--repair", "seam_refit"),
        *("--max-length", "64", "--eval-builtin", "passages/maths", "--window", "32", "--windows", "2"),
        *("--preset", "quick", "--steps", "2", "--warmup-steps", "1", "--length", "32", "--train-batch", "2"),
    )
    asked = []
    with hub_server({}, datasets={"org/rows": rows}) as hub:
        # `datasets` itself asks for some things twice: for a file's first bytes, say, and then for the file.
        for name, program in (("once", ("-c", READ)), ("heal", ("-m", "shortviz", *arguments))):
            home = hub.environment(tmp_path / name)
            done = subprocess.run(
                [sys.executable, *program],
                env={**os.environ, **home, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            asked.append(Counter(hub.requests))
            hub.requests.clear()
    assert sum(asked[0].values()) > 0
    assert asked[1] == asked[0]
