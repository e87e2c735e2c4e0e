"""Where text comes from: built-in texts, pasted text, files; hub data sets are in `text_datasets`.

A row is one string. Row numbers count from 0; line numbers of a file count from 1, as editors do.
"""

import difflib
import gc
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from shortviz.errors import ResourceError, ShortvizError, TextError
from shortviz.records.text import TaskSpec, TextSpec

DOMAINS = ("prose", "news", "encyclopaedic", "dialogue", "code", "maths", "german", "french", "spanish")
"""Domain tags of the built-in passages, in the order they take turns."""

PASTED = "pasted text"
"""How the source of pasted text is named."""
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
        return TextRows(rows=(spec.value,), source=PASTED)
    if spec.kind == "file":
        return _read_file(spec)

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


# Rows of a hub data set, streamed with the `datasets` library: only the rows that are used are fetched.

DEFAULT_ROWS = 640
"""Rows read from a data set when no limit is given: nobody means to stream all of C4."""


def read_dataset(spec: TextSpec) -> tuple[tuple[str, ...], str]:
    """Return the first rows of a data set (`spec.limit`, 640 where it is None), and where they come from.

    `spec.value` is a hub id or a local folder of data files.

    Raises:
        TextError: no such data set, subset, split or column; it needs code of its own; a value is not text.
        ResourceError: the hub cannot be reached.
    """
    limit = spec.limit or DEFAULT_ROWS
    name = f"data set {spec.value}"
    with closing(dataset_columns(spec, [spec.key])) as columns:
        rows = checked_rows(enumerate(value for (value,) in islice(columns, limit)), name, spec.key)
    subset = f", subset {spec.subset}" if spec.subset else ""
    return rows, f"{name}{subset}, split {spec.split}, column {spec.key}, first {limit} rows"


def dataset_columns(
    spec: TextSpec | TaskSpec, columns: Sequence[str], option: str = "--key"
) -> Generator[tuple[Any, ...]]:
    """Yield the values of some columns of a data set, row by row; no more rows are fetched than are asked for.

    Raises:
        TextError: no such data set, subset, split or column (`option` chooses it); it needs code of its own.
        ResourceError: the hub cannot be reached.
    """
    rows: Any = iter(_open(spec, columns, option))
    try:
        while True:
            try:
                row = next(rows, None)
            except _library_errors() as error:
                raise _problem(spec, error) from error
            if row is None:
                return
            _check_columns(spec, columns, row, option)
            yield tuple(row[key] for key in columns)
    finally:
        # A parquet file that was not read to its end has threads of pyarrow, and a process that ends while they live is
        # aborted (apache/arrow 45214; datasets 5.2 collects only for pyarrow up to 24): end them now.
        rows.close()
        rows = None
        gc.collect()


def _open(spec: TextSpec | TaskSpec, columns: Sequence[str], option: str) -> Any:
    """Return the stream of rows, of the wanted columns alone where the columns are known beforehand."""
    place = spec.value if Path(spec.value).is_dir() else _look_up(spec)
    import datasets

    try:
        stream = datasets.load_dataset(place, spec.subset, split=spec.split, streaming=True)
    except _library_errors() as error:
        raise _problem(spec, error) from error
    if stream.column_names is None:
        return stream
    _check_columns(spec, columns, stream.column_names, option)
    # The other columns may hold images or sound, which need decoders that nobody asked for.
    return stream.select_columns(list(columns))


def _check_columns(spec: TextSpec | TaskSpec, columns: Sequence[str], found: Iterable[str], option: str) -> None:
    names = list(found)
    for key in columns:
        if key not in names:
            raise missing_column(key, f"data set {spec.value}", names, option)


def _look_up(spec: TextSpec | TaskSpec) -> str:
    """Return the full id of a hub data set.

    Asking first gives a plain error at once; `load_dataset` (datasets 5.2) tries for half a minute when the network is
    down, and takes the name of a file format ("csv") for the folder it was started in.
    """
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
    from huggingface_hub import HfApi

    if not spec.value.strip():
        raise TextError("No data set was named; give a hub id such as allenai/c4.")
    if spec.value in _PACKAGED_DATASETS_MODULES:
        raise TextError(f"{spec.value!r} is a file format, not a data set; give a hub id, or a local file instead.")
    try:
        return str(HfApi().dataset_info(spec.value).id)
    except _library_errors() as error:
        raise _problem(spec, error) from error


def _library_errors() -> tuple[type[Exception], ...]:
    import httpx2
    from datasets.exceptions import DatasetsError

    return (DatasetsError, httpx2.HTTPError, OSError, ValueError, RuntimeError, KeyError)


def _problem(spec: TextSpec | TaskSpec, error: Exception) -> ShortvizError:
    """Return the library's error as one sentence for people."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    name = spec.value
    subset, split = ("--task-subset", "--task-split") if isinstance(spec, TaskSpec) else ("--subset", "--split")
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, GatedRepoError) or "is a gated dataset" in text:
        return TextError(f"Data set {name} is gated; accept its terms on the hub and log in with `hf auth login`.")
    if isinstance(error, RepositoryNotFoundError | DatasetNotFoundError):
        return TextError(f"There is no data set {name} on the hub, or it is private; check its id.")
    if isinstance(error, HFValidationError):
        return TextError(f"{name!r} is neither a folder here nor a data set id of the hub; check the spelling.")
    if "scripts are no longer supported" in text:
        return TextError(
            f"Data set {name} needs code of its own, which is never run; choose one with plain data files."
        )
    if "Config name is missing" in text:
        return TextError(f"Data set {name} has several subsets; choose one with {subset} ({_available(text)}).")
    if "BuilderConfig" in text and "not found" in text:
        return TextError(
            f"Data set {name} has no subset {spec.subset!r}; choose one with {subset} ({_available(text)})."
        )
    if "Bad split" in text:
        return TextError(f"Data set {name} has no split {spec.split!r}; choose one with {split} ({_available(text)}).")
    instead = "a file of questions" if isinstance(spec, TaskSpec) else "a built-in text"
    return _network_problem(name, error, instead) or TextError(
        f"Data set {name} cannot be read ({text[:300] or type(error).__name__}); try another one."
    )


def _network_problem(name: str, error: Exception, instead: str) -> ResourceError | None:
    """Return the error for a hub that does not answer, or answers with a failure of its own."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    chain = [e for e in (error, error.__cause__, error.__context__) if e is not None]
    codes = [e.response.status_code for e in chain if isinstance(e, HfHubHTTPError | httpx2.HTTPStatusError)]
    if codes:
        return ResourceError(f"The hub answered with an error (HTTP {codes[0]}) for data set {name}; try again later.")
    if any(isinstance(e, ConnectionError | TimeoutError | httpx2.TransportError) for e in chain):
        return ResourceError(f"The hub cannot be reached for data set {name}; check the network or use {instead}.")
    return None


def _available(text: str) -> str:
    """Return the list that the library's message holds, without its brackets."""
    return "there are: " + text.rpartition("[")[2].partition("]")[0].replace("'", "")
