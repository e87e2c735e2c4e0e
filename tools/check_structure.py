"""Check that the files of shortviz/ are cut as CONTRIBUTING.md says; one line a finding, exit 1 where there is one.

    .venv/bin/python tools/check_structure.py

ALLOWED holds how many findings of a rule there still are, and LINES how many lines: both may only fall. Lower a number
with the change that makes it too high.
"""

import argparse
import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "shortviz"

MOST_FILES_AT_TOP = 9
MOST_FILES = 15
SMALL_LINES = 80
LONG_LINES = 500

LINES: Mapping[str, int] = {
    "": 38_281,  # 38,060 before repairs were trained; 31,274 before GGUF, strips, searches and evidence
    "cli": 1_750,
    "ui": 6_725,  # 6,200 before strips, searches, evidence, own text, opened runs and lit formulas; 5,866 before
}
"""By folder: the most lines it may have."""

ALLOWED: Mapping[str, int] = {
    "folders": 0,
    "prefixes": 0,
    "importers": 0,
    "lengths": 0,
    "hosted": 0,
    "lines": 0,
    "options": 2,  # pip's, and one in a command to be copied
}
"""By rule: how many findings are let pass."""

ASKS_WHETHER_HOSTED = ("service/policy.py", "settings.py", "server/")
"""Where `is_hosted` may be asked; everywhere else the policy's answer is."""

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
SPELLS_OPTIONS = (
    "cli/",
    "ui/",
    "server/",
    "service/spelling.py",
    "service/requests.py",
    "records/",
    "export/recipes.py",
)
"""Where options of the command line are written on purpose: help texts, and commands to be copied."""


def folders(package: Path) -> Iterator[str]:
    """Tell the folders with too many files; `__init__` and `__main__` are files too."""
    for folder, files in _by_folder(package).items():
        most = MOST_FILES_AT_TOP if folder == package else MOST_FILES
        if len(files) > most:
            yield f"{_name(package, folder)}: {len(files)} .py files; at most {most}"


def prefixes(package: Path) -> Iterator[str]:
    """Tell files of a folder that share what stands before their first `_`: such a prefix is a missing folder."""
    for files in _by_folder(package).values():
        groups = defaultdict(list)
        for file in files:
            if not file.stem.startswith("_"):
                groups[file.stem.split("_")[0]].append(_name(package, file))
        yield from (f"{', '.join(names)}: share a prefix" for names in groups.values() if len(names) > 1)


def importers(package: Path) -> Iterator[str]:
    """Tell small modules with exactly one importer: they belong into it."""
    files = {_module(package, file): file for file in _files(package)}
    found = defaultdict(set)
    for module, file in files.items():
        if not file.stem.startswith("__"):
            for name in _imported(package, file):
                found[name].add(module)
    for module, file in files.items():
        users = found[module] - {module}
        if len(users) == 1 and _count(file) < SMALL_LINES and not file.stem.startswith("__"):
            yield f"{_name(package, file)}: {_count(file)} lines, and only {users.pop()} imports it"


def lengths(package: Path) -> Iterator[str]:
    """Tell the files that are too long for one idea."""
    for file in _files(package):
        if _count(file) > LONG_LINES:
            yield f"{_name(package, file)}: {_count(file)} lines; at most {LONG_LINES}"


def hosted(package: Path) -> Iterator[str]:
    """Tell who asks whether the app is hosted, and has no business to: the policy knows what follows from it."""
    for file in _files(package):
        if file.relative_to(package).as_posix().startswith(ASKS_WHETHER_HOSTED):
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            for _ in range(line.count("is_hosted")):
                yield f"{_name(package, file)}:{number}: asks is_hosted; let service/policy.py answer"


def lines(package: Path) -> Iterator[str]:
    """Tell the folders with too many lines, which are counted with those of the folders below."""
    for folder, most in LINES.items():
        total = sum(_count(file) for file in _files(package / folder))
        if total > most:
            yield f"{_name(package, package / folder)}: {total} lines; at most {most}"


def options(package: Path) -> Iterator[str]:
    """Tell sentences of the core that name an option of the command line: the library and the pages have none."""
    for file in _files(package):
        if file.relative_to(package).as_posix().startswith(SPELLS_OPTIONS):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            found = node.value if isinstance(node, ast.Constant) and id(node) not in alone else None
            if isinstance(found, str) and (option := OPTION.search(found)):
                yield f"{_name(package, file)}:{node.lineno}: names {option[0]}"  # type: ignore[attr-defined]


RULES: tuple[Callable[[Path], Iterator[str]], ...] = (folders, prefixes, importers, lengths, hosted, lines, options)


def check(package: Path, allowed: Mapping[str, int] = ALLOWED) -> list[str]:
    """Return every finding of the rules that have more than they are allowed, each with the name of its rule."""
    told = []
    for rule in RULES:
        found, most = list(rule(package)), allowed.get(rule.__name__, 0)
        if len(found) > most:
            more = f" ({len(found)} of these, {most} allowed)" if most else ""
            told += [f"{rule.__name__}: {finding}{more}" for finding in found]
    return told


def _files(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def _by_folder(package: Path) -> dict[Path, list[Path]]:
    groups = defaultdict(list)
    for file in _files(package):
        groups[file.parent].append(file)
    return groups


def _name(package: Path, path: Path) -> str:
    return path.relative_to(package.parent).as_posix()


def _count(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def _module(package: Path, file: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(package: Path, file: Path) -> Iterator[str]:
    """Yield what may be the names of the modules that a file imports, anywhere in it."""
    folders = file.relative_to(package.parent).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folders[: len(folders) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def main() -> int:
    """Print the findings; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="also those that are let pass")
    found = check(PACKAGE, {} if parser.parse_args().all else ALLOWED)
    print(*found, sep="\n", end="\n" if found else "")
    if not found:
        counts = Counter({rule.__name__: len(list(rule(PACKAGE))) for rule in RULES})
        fallen = [f"{name} {counts[name]}" for name, most in ALLOWED.items() if counts[name] < most]
        if fallen:
            print(f"ALLOWED in tools/check_structure.py can be lowered: {', '.join(fallen)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
