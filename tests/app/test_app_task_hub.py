"""Questions of a data set of the hub, chosen in the app: its address is read at import, so each app is a process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_server import hub_server
from tests.support.paths import ROOT

SCRIPT = """
import json, logging, sys
from streamlit.testing.v1 import AppTest
from tests.app.conftest import TEXT, App
from shortviz.records.text import TextSpec
from shortviz.ui.session import state as s
from shortviz.ui.session.service import bench
logging.getLogger("streamlit").setLevel(logging.ERROR)
asked = json.loads(sys.stdin.read())
page = App(model=asked["model"])
page.click("load_shown")
done = bench().jobs.wait(page.state["jobs"]["load"], 120)
assert done is not None and done.state == "done", done
page.run()
page.at.segmented_control(key="inspector_task_source").set_value("dataset")
page.run()
fields = [w for w in (*page.at.text_input, *page.at.selectbox) if w.key == "inspector_task_dataset"]
fields[0].set_value(asked["dataset"])
page.at.text_input(key="inspector_task_subset").set_value(asked["subset"])
page.at.text_input(key="inspector_question").set_value(asked["question"])
page.at.text_input(key="inspector_choices").set_value(asked["choices"])
page.at.text_input(key="inspector_label").set_value("right")
if "limit" in asked:
    page.at.number_input(key="inspector_limit").set_value(asked["limit"])
page.run().click("inspector_use")
state = ""
if "questions" in page.state["jobs"]:
    found = bench().jobs.wait(page.state["jobs"]["questions"], 120)
    state = found.state
    page.run()
options = list(fields[0].options) if hasattr(fields[0], "options") else None
print(json.dumps({"state": state, "errors": page.errors, "words": page.words, "options": options}))
bench().close()
"""
COLUMNS = {"dataset": "org/rows", "subset": "", "question": "goal", "choices": "a, b"}


@pytest.fixture
def repositories(tmp_path: Path) -> dict[str, Path]:
    """A data set with one split, validation, and one with two subsets."""
    folders = {f"org/{name}": tmp_path / "repos" / name for name in ("rows", "subsets")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    rows = [{"goal": f"The river carries {i}", "a": "stones", "b": "bread", "right": i % 2} for i in range(20)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folders["org/rows"] / "validation.jsonl").write_text(lines)
    files = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: validation\n    path: {name}.jsonl\n"
        for name in ("en", "de")
    )
    (folders["org/subsets"] / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
    for name in ("en", "de"):
        (folders["org/subsets"] / f"{name}.jsonl").write_text(lines)
    return folders


def in_the_app(
    repositories: dict[str, Path], tiny_folder: Path, home: Path, hosted: dict[str, str] | None = None, **asked: Any
) -> dict[str, Any]:
    """Choose questions of a data set in an app of its own, against a hub of its own."""
    with hub_server({}, datasets=repositories) as hub:
        environment = {**os.environ, **hub.environment(home), "SHORTVIZ_RUNS_DIR": str(home / "runs"), **(hosted or {})}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            input=json.dumps(COLUMNS | {"model": str(tiny_folder)} | asked),
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_questions_of_the_hub_are_chosen_and_counted(
    repositories: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    found = in_the_app(repositories, tiny_folder, tmp_path, limit=7)
    assert found["state"] == "done", found
    assert "Chosen: 7 questions of data set org/rows, split validation, columns goal, a, b, right" in found["words"]


def test_a_subset_is_asked_for_by_the_name_of_its_field(
    repositories: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    found = in_the_app(repositories, tiny_folder, tmp_path, dataset="org/subsets")
    assert found["state"] == "failed"
    sentence = "Data set org/subsets has several subsets; choose one with Subset (there are: en, de)."
    assert sentence in found["errors"]
    found = in_the_app(repositories, tiny_folder, tmp_path, dataset="org/subsets", subset="de")
    assert found["state"] == "done", found
    assert "data set org/subsets, subset de, split validation" in found["words"]


def test_where_strangers_meet_only_offered_data_sets_and_few_questions_are_read(
    repositories: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    hosted = {
        "SHORTVIZ_HOSTED": "1",
        "SHORTVIZ_ALLOWED_MODELS": str(tiny_folder),
        "SHORTVIZ_ALLOWED_DATASETS": "org/rows",
        "SHORTVIZ_MAX_ROWS": "9",
        "SHORTVIZ_MIN_FREE_MB": "0",
    }
    found = in_the_app(repositories, tiny_folder, tmp_path, hosted)
    assert (found["state"], found["options"]) == ("done", ["org/rows"]), found
    assert "Chosen: 9 questions of data set org/rows" in found["words"]
