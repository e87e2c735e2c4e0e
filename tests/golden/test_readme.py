"""The README: every python and bash block runs in order in one empty folder, every file it names is there."""

import os
import re
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


def test_every_file_of_the_table_is_there():
    section = README.split("## Where things are")[1].split("## Limits")[0]
    rows = [re.findall(r"`(.+?)`", row) for row in re.findall(r"^\| (`.*?) \|", section, flags=re.M)]
    assert len(rows) > 15
    for first, *others in rows:
        folder = (ROOT / first).parent  # further names of a row stand beside the first
        missing = [name for name in (Path(first).name, *others) if not list(folder.glob(name))]
        assert not missing, f"the README names {missing}"
