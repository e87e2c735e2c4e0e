"""Write README's list of files anew: each room and module of shortviz/ with the first line of its docstring.

    .venv/bin/python tools/make_file_table.py

Rooms stand in the order of the import contract in pyproject.toml, which no room can be left out of.
"""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- files: written by `make files` -->\n", "<!-- end of files -->\n"


def file_table(package: Path, order: list[str]) -> str:
    """Return the list in Markdown: the rooms in this order, in each the modules by name."""
    lines = [f"Each room imports only rooms below it in this list of `{package.name}/`.", ""]
    for name in order:
        lines += _listed(package / name if (package / name).is_dir() else package / f"{name}.py", 0)
    return "\n".join([*lines, ""])


def with_table(readme: str, table: str) -> str:
    """Return the README with the table between its markers."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}{table}{END}{rest.split(END)[1]}"


def _listed(path: Path, depth: int) -> list[str]:
    indent = "  " * depth
    if path.is_file():
        return [f"{indent}- `{path.name}`: {_first_line(path)}"]
    below = [one for one in sorted(path.iterdir(), key=lambda one: (one.is_dir(), one.name)) if _is_code(one)]
    return [f"{indent}- **`{path.name}/`** {_first_line(path / '__init__.py')}"] + [
        line for one in below for line in _listed(one, depth + 1)
    ]


def _is_code(path: Path) -> bool:
    return (path / "__init__.py").is_file() or (path.suffix == ".py" and path.name != "__init__.py")


def _first_line(module: Path) -> str:
    told = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    if not told:
        raise SystemExit(f"{module} has no docstring to be listed by.")
    return told.splitlines()[0]


def current_table() -> str:
    """Return the list as the files are now."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one["type"] == "layers")
    return file_table(ROOT / "shortviz", [name for layer in layers for name in re.split(r" [:|] ", layer)])


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8"), current_table()), encoding="utf-8")
