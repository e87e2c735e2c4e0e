"""Where text comes from: built-in texts, pasted text, files; hub data sets are in `text_datasets`.

A row is one string. Row numbers count from 0; line numbers of a file count from 1, as editors do.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from shortviz.errors import TextError
from shortviz.records import TextSpec

DOMAINS = ("prose", "news", "encyclopaedic", "dialogue", "code", "maths", "german", "french", "spanish")
"""Domain tags of the built-in passages, in the order they take turns."""

_REFERENCE_ROW_CHARACTERS = 2000
"""A row of the Python reference ends at the first paragraph end past this: enough to fill 256 tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRows:
    """Rows of text and, for people, where they come from."""

    rows: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if not any(row.strip() for row in self.rows):
            raise TextError(f"The {self.source} is empty; give some text.")


def builtin_names() -> tuple[str, ...]:
    """Return the names of the built-in texts; `passages/<domain>` is the part of `passages` with one domain tag."""
    return ("passages", *(f"passages/{domain}" for domain in DOMAINS), "python-reference")


def read_rows(spec: TextSpec) -> TextRows:
    """Return at most `spec.limit` rows of the text, unchanged and in order.

    Raises:
        TextError: there is no such text, or it cannot be read as text.
        ResourceError: a data set cannot be reached.
    """
    if spec.kind == "builtin":
        return TextRows(rows=_builtin_rows(spec.value)[: spec.limit], source=f"built-in {spec.value}")
    if spec.kind == "paste":
        return TextRows(rows=(spec.value,), source="pasted text")
    if spec.kind == "file":
        return _read_file(spec)
    from shortviz.text_datasets import read_dataset

    rows, source = read_dataset(spec)
    return TextRows(rows=rows, source=source)


def checked_rows(values: Iterable[tuple[int, Any]], where: str, key: str, unit: str = "row") -> tuple[str, ...]:
    """Return the values as rows of text; a null is an empty row.

    Raises:
        TextError: a value is not text; its number is named.
    """
    rows = []
    for number, value in values:
        if value is not None and not isinstance(value, str):
            raise TextError(
                f"Column {key!r} of {where} holds {type(value).__name__} in {unit} {number}, not text; "
                "choose a column of text."
            )
        rows.append(value or "")
    return tuple(rows)


def missing_column(key: str, where: str, columns: Iterable[str], option: str = "--key") -> TextError:
    """Return the error for a column that is not there: it names those that are, and the option that chooses one."""
    names = ", ".join(columns) or "none"
    return TextError(f"There is no column {key!r} in {where}; it has: {names}. Choose one of them with {option}.")


# Built-in texts


def _builtin_rows(name: str) -> tuple[str, ...]:
    if name == "python-reference":
        return tuple(_reference_rows())
    if name == "passages":
        turns = zip(*(_passages(domain) for domain in DOMAINS), strict=True)
        return tuple(passage for turn in turns for passage in turn)
    if name in builtin_names():
        return _passages(name.removeprefix("passages/"))
    near = difflib.get_close_matches(name, builtin_names(), n=1)
    hint = f"did you mean {near[0]!r}? There are" if near else "there are"
    raise TextError(f"There is no built-in text {name!r}; {hint}: {', '.join(builtin_names())}.")


def _passages(domain: str) -> tuple[str, ...]:
    """Return the passages of a domain: after the front matter each begins with a line `=== title`."""
    content = (files("shortviz") / "builtin_texts" / f"{domain}.txt").read_text(encoding="utf-8")
    parts = ("\n" + content).split("\n=== ")[1:]
    return tuple(part.split("\n", 1)[1].strip("\n") for part in parts)


def _reference_rows() -> Iterator[str]:
    """Yield the Python language reference of this CPython, topic by topic, cut at paragraph ends.

    Topics repeat each other's sections: a paragraph that was there before is left out.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    row: list[str] = []
    for name in sorted(topics):
        for part in topics[name].split("\n\n"):
            paragraph = part.strip("\n")
            if not paragraph.strip() or paragraph in seen:
                continue
            seen.add(paragraph)
            row.append(paragraph)
            if sum(map(len, row)) >= _REFERENCE_ROW_CHARACTERS:
                yield "\n\n".join(row)
                row = []
    if row:
        yield "\n\n".join(row)


# Files


def _read_file(spec: TextSpec) -> TextRows:
    path = Path(spec.value).expanduser()
    check_file(path)
    suffix = path.suffix.lower()
    if suffix not in {".jsonl", ".csv", ".parquet"}:
        return TextRows(rows=(_decode(path.read_bytes(), path),), source=f"file {path.name}")
    if suffix == ".jsonl":
        rows = _jsonl_rows(path, spec)
    elif suffix == ".csv":
        rows = _csv_rows(path, spec)
    else:
        rows = _parquet_rows(path, spec)
    return TextRows(rows=rows, source=f"file {path.name}, column {spec.key}")


def check_file(path: Path) -> None:
    """Raise TextError unless the path is a file that can be opened."""
    if not str(path).strip() or str(path) == ".":
        raise TextError("No file was named; give the path of a text file.")
    try:
        found = path.exists()
    except OSError as error:
        raise TextError(f"The file {path} cannot be read ({error.strerror}); check the path.") from error
    if not found:
        raise TextError(f"There is no file {path}; check the path.")
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "not a regular file"
        raise TextError(f"{path} is {kind}; give a text, .jsonl, .csv or .parquet file.")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise TextError(f"The file {path} cannot be read ({error.strerror}); check its permissions.") from error


def _decode(data: bytes, path: Path, line: int | None = None) -> str:
    """Return the bytes as text, unchanged but for a byte order mark at the start."""
    where = f"{path}, line {line}," if line else f"{path}"
    if b"\0" in data:
        raise TextError(f"{where} is a binary file or not UTF-8; give a file of UTF-8 text.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{where} is not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start}); "
            "give a file of UTF-8 text."
        ) from error


def _jsonl_rows(path: Path, spec: TextSpec) -> tuple[str, ...]:
    with path.open("rb") as file:
        return checked_rows(islice(_jsonl_values(file, path, spec.key), spec.limit), str(path), spec.key, unit="line")


def _jsonl_values(lines: Iterable[bytes], path: Path, key: str) -> Iterator[tuple[int, Any]]:
    for number, entry in json_objects(lines, path, key):
        if key not in entry:
            raise missing_column(key, f"line {number} of {path}", map(str, entry))
        yield number, entry[key]


def json_objects(lines: Iterable[bytes], path: Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON lines file with their line numbers, from 1; `key` is for the error's example."""
    for number, data in enumerate(lines, start=1):
        line = _decode(data, path, number).strip()
        if not line:
            continue
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise TextError(f"Line {number} of {path} is not JSON ({reason}); mend or remove it.") from error
        if not isinstance(entry, dict):
            raise TextError(
                f"Line {number} of {path} is a JSON {type(entry).__name__}, not an object; "
                f'each line must look like {{"{key}": "..."}}.'
            )
        yield number, entry


def _csv_rows(path: Path, spec: TextSpec) -> tuple[str, ...]:
    table = csv_columns(path, [spec.key], spec.limit)
    return checked_rows(enumerate(value for (value,) in table), str(path), spec.key)


def csv_columns(path: Path, columns: Sequence[str], limit: int | None, option: str = "--key") -> Iterator[list[str]]:
    """Yield the values of some columns, row by row, as text; an empty field is empty text.

    Raises TextError where the file is not UTF-8 CSV or has no such column (`option` chooses it).
    """
    import pandas as pd

    with path.open("rb") as file:
        _decode(file.readline(), path)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, nrows=limit, encoding="utf-8-sig")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TextError(f"{path} cannot be read as CSV ({reason}); check that it is comma-separated UTF-8.") from error
    for key in columns:
        if key not in table.columns:
            raise missing_column(key, str(path), map(str, table.columns), option)
    if not isinstance(table.index, pd.RangeIndex):
        raise TextError(f"The rows of {path} have more fields than its header; quote fields that hold commas.")
    yield from table[list(columns)].values.tolist()


def _parquet_rows(path: Path, spec: TextSpec) -> tuple[str, ...]:
    values = (value for (value,) in islice(parquet_columns(path, [spec.key]), spec.limit))
    return checked_rows(enumerate(values), str(path), spec.key)


def parquet_columns(path: Path, columns: Sequence[str], option: str = "--key") -> Iterator[tuple[Any, ...]]:
    """Yield the values of some columns, row by row, reading no more of the file than is asked for.

    Raises TextError where the file is not Parquet or has no such column (`option` chooses it).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for key in columns:
                if key not in file.schema_arrow.names:
                    raise missing_column(key, str(path), file.schema_arrow.names, option)
            for batch in file.iter_batches(batch_size=256, columns=list(columns)):
                yield from zip(*(batch.column(key).to_pylist() for key in columns), strict=True)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TextError(f"{path} cannot be read as Parquet ({reason}); check that it is complete.") from error
