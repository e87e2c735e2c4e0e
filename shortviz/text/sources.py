"""Where text comes from: built-in texts, pasted text, files and hub data sets, of which only rows in use are fetched.

A row is one string. Row numbers count from 0; line numbers of a file count from 1, as editors do.
"""

import difflib
import gc
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

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
    """Rows of text that were read."""

    spec: TextSpec
    rows: tuple[str, ...]
    source: str
    """For people: where they come from."""

    def __post_init__(self) -> None:
        if not any(row.strip() for row in self.rows):
            raise TextError(f"The {self.source} is empty; give some text.")


Text = TextSpec | TextRows
"""What is to be turned into tokens: read by then, or already read."""


def builtin_names() -> tuple[str, ...]:
    """Return the names of the built-in texts; `passages/<domain>` is the part of `passages` with one domain tag."""
    return ("passages", *(f"passages/{domain}" for domain in DOMAINS), "python-reference")


def read_rows(spec: Text) -> TextRows:
    """Return at most `spec.limit` rows of the text, unchanged and in order; what was read, as it is.

    Raises:
        TextError: there is no such text, or it cannot be read as text.
        ResourceError: a data set cannot be reached.
    """
    if isinstance(spec, TextRows):
        return spec
    if spec.kind == "builtin":
        rows, source = _builtin_rows(spec.value)[: spec.limit], f"built-in {spec.value}"
    elif spec.kind == "paste":
        rows, source = (spec.value,), PASTED
    elif spec.kind == "file":
        rows, source = _read_file(spec)
    else:
        rows, source = _read_dataset(spec)
    return TextRows(spec=spec, rows=rows, source=source)


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


# Files and hub data sets

TABLES = (".jsonl", ".csv", ".parquet")
"""Files of several columns; any other is one row of text."""
DEFAULT_ROWS = 640
"""Rows read from a data set when no limit is given: nobody means to stream all of C4."""


def _read_file(spec: TextSpec) -> tuple[tuple[str, ...], str]:
    path = Path(spec.value).expanduser()
    if path.suffix.lower() in TABLES:
        return _read_column(spec, spec.limit, str(path)), f"file {path.name}, column {spec.key}"
    with opened(path) as file:
        return (_decode(file.read(), path),), f"file {path.name}"


def _read_dataset(spec: TextSpec) -> tuple[tuple[str, ...], str]:
    limit, name = spec.limit or DEFAULT_ROWS, f"data set {spec.value}"
    subset = f", subset {spec.subset}" if spec.subset else ""
    source = f"{name}{subset}, split {spec.split}, column {spec.key}, first {limit} rows"
    return _read_column(spec, limit, name), source


def _read_column(spec: TextSpec, limit: int | None, where: str) -> tuple[str, ...]:
    """Return the values of a column as rows of text; a null is an empty row."""
    rows = []
    with closing(table(spec, [spec.key])) as values:
        for place, (value,) in islice(values, limit):
            if value is not None and not isinstance(value, str):
                raise TextError(
                    f"Column {spec.key!r} of {where} holds {type(value).__name__} in {place}, not text; "
                    "choose a column of text."
                )
            rows.append(value or "")
    return tuple(rows)


def table(
    spec: TextSpec | TaskSpec, columns: Sequence[str], *, option: str = "--key", may_lack: str | None = None
) -> Generator[tuple[str, Sequence[Any]]]:
    """Yield (place, values of the columns) of each row of a file or data set; no more is read than is asked for.

    The place is `row 3`, counted from 0, or in a .jsonl file `line 4`, from 1; a row there is None in a column that it
    `may_lack`. `option` is what chooses a column, for errors.

    Raises:
        TextError: no such file, data set, subset, split or column; it is broken, or needs code of its own.
        ResourceError: the hub cannot be reached.
    """
    with ExitStack() as held:
        if spec.kind == "dataset":
            rows: Generator[Sequence[Any]] = _dataset_rows(spec, columns, option)
        else:
            path = Path(spec.value).expanduser()
            file = held.enter_context(opened(path))
            if path.suffix.lower() == ".jsonl":
                for number, entry in _json_objects(file, path, columns[0]):
                    if absent := next((key for key in columns if key not in entry and key != may_lack), None):
                        raise missing_column(absent, f"line {number} of {path}", map(str, entry), option)
                    yield f"line {number}", [entry.get(key) for key in columns]
                return
            read = _csv_rows if path.suffix.lower() == ".csv" else _parquet_rows
            rows = read(file, path, columns, spec.limit, option)
        for number, row in enumerate(held.enter_context(closing(rows))):
            yield f"row {number}", row


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Yield an open file; raises TextError where there is none that can be read."""
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
        file = path.open("rb")
    except OSError as error:
        raise TextError(f"The file {path} cannot be read ({error.strerror}); check its permissions.") from error
    with file:
        yield file


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


def _json_objects(lines: Iterable[bytes], path: Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
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


def _csv_rows(
    file: BinaryIO, path: Path, columns: Sequence[str], limit: int | None, option: str
) -> Generator[Sequence[Any]]:
    """Yield the values of some columns, row by row, as text; an empty field is empty text."""
    import pandas as pd

    _decode(file.readline(), path)
    file.seek(0)
    try:
        found = pd.read_csv(file, dtype=str, keep_default_na=False, nrows=limit, encoding="utf-8-sig")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TextError(f"{path} cannot be read as CSV ({reason}); check that it is comma-separated UTF-8.") from error
    _check_columns(columns, map(str, found.columns), str(path), option)
    if not isinstance(found.index, pd.RangeIndex):
        raise TextError(f"The rows of {path} have more fields than its header; quote fields that hold commas.")
    yield from found[list(columns)].values.tolist()


def _parquet_rows(
    file: BinaryIO, path: Path, columns: Sequence[str], _limit: int | None, option: str
) -> Generator[Sequence[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as found:
            _check_columns(columns, found.schema_arrow.names, str(path), option)
            for batch in found.iter_batches(batch_size=256, columns=list(columns)):
                yield from zip(*(batch.column(key).to_pylist() for key in columns), strict=True)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TextError(f"{path} cannot be read as Parquet ({reason}); check that it is complete.") from error


def _check_columns(columns: Sequence[str], found: Iterable[str], where: str, option: str) -> None:
    names = list(found)
    if absent := next((key for key in columns if key not in names), None):
        raise missing_column(absent, where, names, option)


def missing_column(key: str, where: str, columns: Iterable[str], option: str = "--key") -> TextError:
    """Return the error for a column that is not there: it names those that are, and the option that chooses one."""
    names = ", ".join(columns) or "none"
    return TextError(f"There is no column {key!r} in {where}; it has: {names}. Choose one of them with {option}.")


def _dataset_rows(spec: TextSpec | TaskSpec, columns: Sequence[str], option: str) -> Generator[Sequence[Any]]:
    """Yield the values of some columns of a hub data set, or of a local folder of data files."""
    rows: Any = iter(_open(spec, columns, option))
    try:
        while True:
            with _library_errors(spec):
                row = next(rows, None)
            if row is None:
                return
            _check_columns(columns, row, f"data set {spec.value}", option)
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

    with _library_errors(spec):
        stream = datasets.load_dataset(place, spec.subset, split=spec.split, streaming=True)
    if stream.column_names is None:
        return stream
    _check_columns(columns, stream.column_names, f"data set {spec.value}", option)
    # The other columns may hold images or sound, which need decoders that nobody asked for.
    return stream.select_columns(list(columns))


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
    with _library_errors(spec):
        return str(HfApi().dataset_info(spec.value).id)


@contextmanager
def _library_errors(spec: TextSpec | TaskSpec) -> Iterator[None]:
    """Turn the libraries' errors into one sentence for people."""
    import httpx2
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (DatasetsError, httpx2.HTTPError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise _problem(spec, error) from error


def _problem(spec: TextSpec | TaskSpec, error: Exception) -> ShortvizError:
    """Return the library's error as one sentence for people."""
    import httpx2
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

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
    chain = [e for e in (error, error.__cause__, error.__context__) if e is not None]
    codes = [e.response.status_code for e in chain if isinstance(e, HfHubHTTPError | httpx2.HTTPStatusError)]
    if codes:
        return ResourceError(f"The hub answered with an error (HTTP {codes[0]}) for data set {name}; try again later.")
    if any(isinstance(e, ConnectionError | TimeoutError | httpx2.TransportError) for e in chain):
        instead = "a file of questions" if isinstance(spec, TaskSpec) else "a built-in text"
        return ResourceError(f"The hub cannot be reached for data set {name}; check the network or use {instead}.")
    return TextError(f"Data set {name} cannot be read ({text[:300] or type(error).__name__}); try another one.")


def _available(text: str) -> str:
    """Return the list that the library's message holds, without its brackets."""
    return "there are: " + text.rpartition("[")[2].partition("]")[0].replace("'", "")
