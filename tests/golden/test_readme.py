"""The README: every python and bash block runs in order in one empty folder, every file it names is there."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```$", README, flags=re.M | re.S)


@pytest.mark.demo
def test_every_block_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": search}
    assert [language for language, _ in BLOCKS].count("python") >= 3
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
        else:
            command = ["bash", "-euo", "pipefail", "-c", block]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    written = {path.name for path in tmp_path.iterdir()}
    assert {"run-demo", "short-cli", "short-python", "short-seed", "results.png"} <= written
    assert "short-gated" not in written, "the gate of the example is not held"
    assert json.loads((tmp_path / "gate.json").read_text())["gate"]["held"] is False


def test_every_file_of_the_table_is_there():
    section = README.split("## Where things are")[1].split("<!--")[0]
    names = [name for row in re.findall(r"^\| (`.*?) \|", section, flags=re.M) for name in re.findall(r"`(.+?)`", row)]
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_list_of_files_is_that_of_the_files():
    tool = runpy.run_path(str(ROOT / "tools" / "make_file_table.py"))
    assert tool["with_table"](README, tool["current_table"]()) == README, "run `make files`"


def test_the_list_of_files_has_every_module_with_its_first_line(tmp_path):
    tool = runpy.run_path(str(ROOT / "tools" / "make_file_table.py"))
    package = tmp_path / "shortviz"
    for name, words in {
        "text/__init__.py": '"""Text."""',
        "text/b.py": '"""Two.\n\nMore of it.\n"""',
        "text/deep/__init__.py": '"""Deep."""',
        "text/deep/c.py": '"""Three."""',
        "text/data/x.json": "{}",
        "files.py": '"""Files."""',
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(words)
    told = tool["file_table"](package, ["text", "files"]).splitlines()
    assert told[2:] == [
        "- **`text/`** Text.",
        "  - `b.py`: Two.",
        "  - **`deep/`** Deep.",
        "    - `c.py`: Three.",
        "- `files.py`: Files.",
    ]
    (package / "text" / "a.py").write_text("x = 1\n")
    with pytest.raises(SystemExit, match=r"a\.py has no docstring"):
        tool["file_table"](package, ["text", "files"])
