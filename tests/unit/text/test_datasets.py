"""Hub data sets against a real loopback server, in a process of its own: the hub's address is read at import."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.hub_server import hub_server
from tests.support.paths import ROOT

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("error")
from shortviz.errors import ShortvizError
from shortviz.records.text import TextSpec
from shortviz.text.sources import read_rows
for line in sys.stdin:
    try:
        found = read_rows(TextSpec(kind="dataset", **json.loads(line)))
        rows = [row if isinstance(row, str) else f"chat: {row.contents}" for row in found.rows]
        print(json.dumps([rows, found.source]))
    except ShortvizError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def read_all(environment: dict[str, str], *specs: dict[str, Any]) -> list[list[Any]]:
    """Return [rows, source], or [kind of error, sentence], of each spec."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input="\n".join(map(json.dumps, specs)),
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def repositories(tmp_path: Path) -> dict[str, Path]:
    """Data set repositories by id: parquet, JSON lines, subsets, a script, a broken file, and none at all."""
    names = ("rows", "lines", "subsets", "script", "broken", "nulls", "nothing", "secret", "locked", "failing")
    folders = {f"org/{name}": tmp_path / "repos" / name for name in names}
    for folder in folders.values():
        folder.mkdir(parents=True)
        (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    rows = pd.DataFrame({"body": [f"row {i}" for i in range(1000)], "n": range(1000)})
    rows.to_parquet(folders["org/rows"] / "train-00000-of-00001.parquet")
    lines = "".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(9))
    for name in ("lines", "secret", "locked", "failing"):
        (folders[f"org/{name}"] / "train.jsonl").write_text(lines)
    card = "---\nconfigs:\n- config_name: en\n  data_files: en.jsonl\n- config_name: de\n  data_files: de.jsonl\n---\n"
    (folders["org/subsets"] / "README.md").write_text(card)
    (folders["org/subsets"] / "en.jsonl").write_text('{"text": "hello"}\n')
    (folders["org/subsets"] / "de.jsonl").write_text('{"text": "hallo"}\n')
    (folders["org/script"] / "script.py").write_text("raise SystemExit('this code was run')\n")
    (folders["org/broken"] / "train.parquet").write_bytes(b"PAR1 and then nothing")
    (folders["org/nulls"] / "train.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": "b"}\n')
    return folders


def test_rows_are_streamed_from_the_hub(repositories: dict[str, Path], tmp_path: Path) -> None:
    with hub_server({}, datasets=repositories) as hub:
        whole, few, lines, german, nulls = read_all(
            hub.environment(tmp_path / "home"),
            {"value": "org/rows", "key": "body"},
            {"value": "org/rows", "key": "body", "limit": 3},
            {"value": "org/lines", "limit": 2},
            {"value": "org/subsets", "subset": "de"},
            {"value": "org/nulls"},
        )
    assert whole == [
        [f"row {i}" for i in range(640)],
        "data set org/rows, split train, column body, first 640 rows",
    ]
    assert few == [["row 0", "row 1", "row 2"], "data set org/rows, split train, column body, first 3 rows"]
    assert lines[0] == ["line 0", "line 1"]
    assert german == [["hallo"], "data set org/subsets, subset de, split train, column text, first 640 rows"]
    assert nulls[0] == ["a", "", "b"]


PROBLEMS = [
    ({"value": "org/rows"}, "TextError", "There is no column 'text' in data set org/rows; it has: body, n. Choose one"),
    (
        {"value": "org/lines", "key": "body"},
        "TextError",
        "no column 'body' in data set org/lines; it has: text. Choose",
    ),
    ({"value": "org/rows", "key": "n"}, "TextError", "Column 'n' of data set org/rows holds int in row 0, not text"),
    (
        {"value": "org/rows", "split": "test"},
        "TextError",
        "no split 'test'; choose one with `split` (there are: train)",
    ),
    ({"value": "org/subsets"}, "TextError", "has several subsets; choose one with `subset` (there are: en, de)"),
    ({"value": "org/subsets", "subset": "fr"}, "TextError", "has no subset 'fr'; choose one with `subset` (there are"),
    ({"value": "org/absent"}, "TextError", "There is no data set org/absent on the hub, or it is private; check its"),
    ({"value": "org/secret"}, "TextError", "There is no data set org/secret on the hub, or it is private"),
    ({"value": "org/locked"}, "TextError", "Data set org/locked is gated; accept its terms on the hub and log in"),
    ({"value": "org/failing"}, "ResourceError", "The hub answered with an error (HTTP 500) for data set org/failing"),
    ({"value": "org/script"}, "TextError", "Data set org/script needs code of its own, which is never run; choose one"),
    ({"value": "org/broken"}, "TextError", "Data set org/broken cannot be read ("),
    ({"value": "org/nothing"}, "TextError", "Data set org/nothing cannot be read ("),
    ({"value": " "}, "TextError", "No data set was named; give a hub id such as allenai/c4"),
    ({"value": "csv"}, "TextError", "'csv' is a file format, not a data set; give a hub id, or a local file instead"),
    ({"value": "/no/such/folder"}, "TextError", "'/no/such/folder' is neither a folder here nor a data set id of the"),
]


def test_each_problem_with_a_data_set_gets_one_clear_sentence(repositories: dict[str, Path], tmp_path: Path) -> None:
    failures: dict[str, int | str] = {"org/secret": "private", "org/locked": "gated", "org/failing": 500}
    with hub_server({}, datasets=repositories, failures=failures) as hub:
        answers = read_all(hub.environment(tmp_path / "home"), *(spec for spec, _, _ in PROBLEMS))
    for (_, kind, sentence), answer in zip(PROBLEMS, answers, strict=True):
        assert answer[0] == kind, answer
        assert sentence in answer[1]
        assert "\n" not in answer[1]


def test_a_hub_that_cannot_be_reached_is_said_so(repositories: dict[str, Path], tmp_path: Path) -> None:
    with hub_server({}) as hub:
        environment = hub.environment(tmp_path / "home")
    specs = ({"value": "org/rows"}, {"value": str(repositories["org/rows"]), "key": "body", "limit": 1})
    down, local = read_all(environment, *specs)
    offline = read_all({**environment, "HF_HUB_OFFLINE": "1"}, specs[0])
    sentence = "The hub cannot be reached for data set org/rows; check the network or use a built-in text."
    assert [down, *offline] == [["ResourceError", sentence]] * 2
    assert local[0] == ["row 0"]


def folder(path: Path, **files: str) -> str:
    path.mkdir()
    for name, content in files.items():
        (path / name.replace("_", ".")).write_text(content)
    return str(path)


def test_a_column_that_is_null_at_first_is_read_where_it_is_text_later(tmp_path: Path) -> None:
    nulls = '{"text": null, "other": null}\n' * 3
    chats = '{"messages": null}\n' * 3
    blocks = "".join(json.dumps({"text": None, "more": "x" * 2000}) + "\n" for _ in range(6000))  # more than a block
    found = read_all(
        {},
        {"value": folder(tmp_path / "files", a_jsonl=nulls, b_jsonl='{"text": "007", "other": [1]}\n')},
        {"value": folder(tmp_path / "blocks", a_jsonl=blocks + '{"text": "late", "more": ""}\n'), "limit": 7000},
        {"value": folder(tmp_path / "tables", a_csv="text,b\n,1\n,2\n", b_csv="text,b\nlate,1\n")},
        {"value": folder(tmp_path / "chats", a_jsonl=chats, b_jsonl='{"messages": [{"role": "a", "content": "b"}]}\n')},
    )
    assert found[0][0] == ["", "", "", "007"]
    assert found[1][0] == [""] * 6000 + ["late"]
    assert found[2][0] == ["", "", "late"]
    assert found[3][0] == ["", "", "", "chat: b"]


def test_a_folder_that_needs_its_loading_script_is_refused_though_there_is_data_beside_it(tmp_path: Path) -> None:
    code = "raise SystemExit('this code was run')\n"
    (found,) = read_all({}, {"value": folder(tmp_path / "mine", mine_py=code, train_jsonl='{"text": "a"}\n')})
    assert found[0] == "TextError"
    assert found[1].endswith("mine needs code of its own, which is never run; choose one with plain data files.")


def test_the_column_of_a_data_set_is_proposed_and_chats_are_found(tmp_path: Path) -> None:
    chat = json.dumps({"id": "a", "messages": [{"role": "user", "content": "Up?"}]}) + "\n"
    title = '{"title": "a", "body": "some more words", "n": 1}\n'
    chats, proposed, lines = read_all(
        {},
        {"value": folder(tmp_path / "chats", train_jsonl=chat)},
        {"value": folder(tmp_path / "titles", train_jsonl=title)},
        {"value": folder(tmp_path / "csv", train_csv="title,body\na,some more words\n")},
    )
    assert chats[0] == ["chat: Up?"]
    assert "split train, column messages" in chats[1]
    for found in (proposed, lines):
        assert found[0] == "TextError"
        assert found[1].endswith("Choose one of them with `key`; the longest text is in 'body' (`key` body).")
