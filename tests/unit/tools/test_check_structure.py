"""The rules for files and folders: each can fail, and what is let pass is counted."""

import runpy
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TOOL = runpy.run_path(str(ROOT / "tools" / "check_structure.py"))


def package_of(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "shortviz"
    for name, words in {"__init__.py": "", **files}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(words, encoding="utf-8")
    return package


def numbered(count: int, folder: str = "") -> dict[str, str]:
    return {f"{folder}{chr(ord('a') + k)}.py": "" for k in range(count)}


ENOUGH = "x = 1\n" * 80
BROKEN = {
    "folders": [
        (numbered(9), "shortviz: 10 .py files; at most 9"),
        (numbered(16, "text/"), "shortviz/text: 16 .py files; at most 15"),
    ],
    "prefixes": [
        ({"cli_map.py": "", "cli_run.py": ""}, "shortviz/cli_map.py, shortviz/cli_run.py: share a prefix"),
        ({"ui/map.py": "", "ui/map_view.py": ""}, "shortviz/ui/map.py, shortviz/ui/map_view.py: share a prefix"),
    ],
    "importers": [
        ({"a.py": "", "b.py": "import shortviz.a\n"}, "shortviz/a.py: 0 lines, and only shortviz.b imports it"),
        (
            {"a.py": "", "b/__init__.py": "", "b/c.py": "def f():\n    from ..a import x\n"},
            "shortviz/a.py: 0 lines, and only shortviz.b.c imports it",
        ),
        (
            {"a.py": "", "b.py": "from shortviz import a\n", "__main__.py": "from shortviz import a\n"},
            "shortviz/a.py: 0 lines, and only shortviz.b imports it",
        ),
    ],
    "lengths": [({"a.py": "x = 1\n" * 501}, "shortviz/a.py: 501 lines; at most 500")],
    "hosted": [
        (
            {"service/service.py": "\nis_hosted\n"},
            "shortviz/service/service.py:2: asks is_hosted; let service/policy.py",
        ),
    ],
    "options": [
        ({"model/a.py": 'x = f"choose {1} with --device, or wait"\n'}, "shortviz/model/a.py:1: names --device"),
    ],
    "lines": [
        ({"a.py": "x = 1\n" * 40_000}, "shortviz: 40000 lines; at most "),
        ({"cli/a.py": "x = 1\n" * 3_000}, "shortviz/cli: 3000 lines; at most "),
        ({"ui/pages/a.py": "x = 1\n" * 7_000}, "shortviz/ui: 7000 lines; at most "),
    ],
}


@pytest.mark.parametrize(("rule", "files", "told"), [(rule, *case) for rule in BROKEN for case in BROKEN[rule]])
def test_each_rule_can_fail(tmp_path: Path, rule: str, files: dict[str, str], told: str) -> None:
    package = package_of(tmp_path, files)
    assert [line for line in TOOL["check"](package, {}) if line.startswith(f"{rule}: {told}")]
    assert TOOL["check"](package, {name: 99 for name in TOOL["ALLOWED"]}) == []


@pytest.mark.parametrize(
    "files",
    [
        {**numbered(8), **numbered(15, "text/")},
        {"maps.py": "", "map_view.py": ""},
        {"a.py": ""},  # what nothing imports is a script, or found by a scan
        {"a.py": ENOUGH, "b.py": "import shortviz.a\n"},
        {"a.py": "", "b.py": "import shortviz.a\n", "c.py": "def f():\n    from shortviz.a import x\n"},
        {"__main__.py": "", "b.py": "import shortviz.__main__\n"},
        {"a.py": "x = 1\n" * 500},
        {"model/a.py": '"""Says --device, as documentation."""\nx = "a--b -- --"\n', "cli/a.py": 'x = "--device"\n'},
        {"service/policy.py": "is_hosted", "settings.py": "is_hosted", "server/start.py": "is_hosted"},
    ],
)
def test_what_keeps_the_rules_is_not_told(tmp_path: Path, files: dict[str, str]) -> None:
    assert TOOL["check"](package_of(tmp_path, files), {}) == []


def test_the_package_keeps_them_but_for_what_is_counted() -> None:
    assert TOOL["check"](TOOL["PACKAGE"]) == []
