"""Where text comes from: built-in texts, pasted text, files and hub data sets, of which only rows in use are fetched.

A row is one string, or one chat. Row numbers count from 0; line numbers of a file count from 1, as editors do.
"""

import difflib
import gc
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from itertools import chain, islice
from pathlib import Path
from typing import Any

from shortviz.errors import ResourceError, ShortvizError, TextError
from shortviz.records.formatting import counted
from shortviz.records.text import TaskSpec, TextSpec
from shortviz.settings import settings
from shortviz.text.chats import Chat, is_chat, read_chat, read_template
from shortviz.text.tables import CHATS, TABLES, Table, Wanted, decode, file_table, kind_of, numbered, opened

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
    rows: tuple[str | Chat, ...]
    source: str
    """For people: where they come from."""
    told: tuple[str, ...] = ()
    """What was found out, chosen or replaced while reading, for people."""

    def __post_init__(self) -> None:
        if not any((row.contents if isinstance(row, Chat) else row).strip() for row in self.rows):
            raise TextError(f"The {self.source} is empty; give some text.")


Text = TextSpec | TextRows
"""What is to be turned into tokens: read by then, or already read."""


def builtin_names() -> tuple[str, ...]:
    """Return the names of the built-in texts; `passages/<domain>` is the part of `passages` with one domain tag."""
    return ("passages", *(f"passages/{domain}" for domain in DOMAINS), "assorted", "python-reference")


def read_rows(spec: Text) -> TextRows:
    """Return at most `spec.limit` rows of the text, unchanged and in order; what was read, as it is.

    Raises:
        TextError: there is no such text, or it cannot be read as text.
        ResourceError: a data set cannot be reached.
    """
    if isinstance(spec, TextRows):
        return spec
    if spec.kind == "builtin":
        return TextRows(spec=spec, rows=_builtin_rows(spec.value)[: spec.limit], source=f"built-in {spec.value}")
    if spec.kind == "paste":
        return _one_row(spec, spec.value, PASTED)
    return _read_file(spec) if spec.kind == "file" else _read_dataset(spec)


# Built-in texts


def _builtin_rows(name: str) -> tuple[str, ...]:
    if name == "python-reference":
        return tuple(_reference_rows())
    if name == "passages":
        turns = zip(*(_passages(domain) for domain in DOMAINS), strict=True)
        return tuple(passage for turn in turns for passage in turn)
    if name in builtin_names():  # a domain, or the assorted texts
        return _passages(name.removeprefix("passages/"))
    near = difflib.get_close_matches(name, builtin_names(), n=1)
    hint = f"did you mean {near[0]!r}? There are" if near else "there are"
    raise TextError(f"There is no built-in text {name!r}; {hint}: {', '.join(builtin_names())}.")


def _passages(name: str) -> tuple[str, ...]:
    """Return the texts of a file: after the front matter each begins with a line `=== title`."""
    content = (files("shortviz") / "builtin_texts" / f"{name}.txt").read_text(encoding="utf-8")
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

DEFAULT_ROWS = 640
"""Rows read from a data set when no limit is given: nobody means to stream all of C4."""


def _read_file(spec: TextSpec) -> TextRows:
    path = Path(spec.value).expanduser()
    if kind_of(path) in TABLES:
        return _read_column(spec, spec.limit, str(path), file_words(path))
    with opened(path) as file:
        return _one_row(spec, decode(file.read(), path), file_words(path))


def file_words(path: Path) -> str:
    """Return what a file is called; an upload lies under the digest of its content, which tells nobody anything."""
    return "uploaded file" if path.parent == settings().uploads_dir else f"file {path.name}"


def _read_dataset(spec: TextSpec) -> TextRows:
    limit, name = spec.limit or DEFAULT_ROWS, f"data set {spec.value}"
    subset = f", subset {spec.subset}" if spec.subset else ""
    found = _read_column(spec, limit, name, f"{name}{subset}, split {spec.split}")
    return replace(found, source=f"{found.source}, first {limit} row{'s' * (limit != 1)}")


def _read_column(spec: TextSpec, limit: int | None, where: str, source: str) -> TextRows:
    """Return the values of a column as rows of text or chats; a null is an empty row."""
    rows: list[str | Chat] = []
    replaced = 0
    with table(spec, Wanted(columns=(spec.key,), chats=True)) as found:
        (key,) = found.columns
        for place, (value,) in islice(found.rows, limit):
            whole, count = whole_characters(from_json(value) if key in CHATS else value)
            replaced += count
            if isinstance(whole, str) and whole.strip() and key != spec.key:
                raise TextError(
                    f"Column {key!r} of {where} holds text in {place}, not a chat; name the column to read."
                )
            if is_chat(whole):
                rows.append(read_chat(whole, f"{place} of {where}"))
            elif whole is None or whole == [] or isinstance(whole, str):
                rows.append(whole or "")
            else:
                raise TextError(
                    f"Column {key!r} of {where} holds {type(whole).__name__} in {place}, not text; choose a column of "
                    "text, or of chats: lists of messages with role and content."
                )
    if spec.chat_template not in ("", "off") and any(isinstance(row, Chat) for row in rows):
        read_template(spec.chat_template)  # told before a model is loaded
    instead = f"read for want of a column {spec.key}" if key != spec.key else ""
    told = (*filter(None, (instead, found.told)), *told_replaced(replaced))
    return TextRows(spec=spec, rows=tuple(rows), source=f"{source}, column {key}", told=told)


def _one_row(spec: TextSpec, text: str, source: str) -> TextRows:
    """Return text as one row."""
    whole, count = whole_characters(text)
    return TextRows(spec=spec, rows=(whole,), source=source, told=told_replaced(count))


def from_json(value: Any) -> Any:
    """Return a list or object written as JSON text, as a .csv file has to hold it; other values as they are."""
    if not isinstance(value, str) or not value.strip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def whole_characters(value: Any) -> tuple[Any, int]:
    """Return (text, or lists and objects of it, with U+FFFD for each half of a character, how many those were).

    UTF-16 makes two halves of some characters, and JSON may spell one alone: that is no text, and no
    tokenizer takes it. Halves that belong together are put together.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            whole = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            return whole, whole.count("\ufffd") - value.count("\ufffd")
        return value, 0
    if isinstance(value, Mapping):
        found = {name: whole_characters(inner) for name, inner in value.items()}
        return {name: inner for name, (inner, _) in found.items()}, sum(count for _, count in found.values())
    if isinstance(value, list | tuple):
        parts = [whole_characters(inner) for inner in value]
        return [inner for inner, _ in parts], sum(count for _, count in parts)
    return value, 0


def told_replaced(number: int) -> tuple[str, ...]:
    """Return the words for halves of characters that were replaced."""
    return (f"{counted(number, 'half character')} replaced by U+FFFD",) if number else ()


@contextmanager
def table(spec: TextSpec | TaskSpec, wanted: Wanted) -> Iterator[Table]:
    """Yield some columns of a file or data set, of which no more is read than is asked for.

    Raises:
        TextError: no such file, data set, subset, split or column; it is broken, or needs code of its own.
        ResourceError: the hub cannot be reached.
    """
    if spec.kind == "file":
        with file_table(Path(spec.value).expanduser(), wanted, spec.limit) as found:
            yield found
    else:
        with _dataset_table(spec, wanted) as found:
            yield found


@contextmanager
def _dataset_table(spec: TextSpec | TaskSpec, wanted: Wanted) -> Iterator[Table]:
    """Yield some columns of a hub data set, or of a local folder of data files."""
    place = spec.value if Path(spec.value).is_dir() else _look_up(spec)
    import datasets

    def load(**more: Any) -> Any:
        with _library_errors(spec):
            return datasets.load_dataset(place, spec.subset, split=spec.split, streaming=True, **more)

    stream, where = load(), f"data set {spec.value}"
    if stream.features is None:  # of CSV files, say: the first row tells
        with closing(_rows(spec, stream)) as rows:
            first = next(rows, {})
            columns = wanted.found(list(first), where, lambda: [first])
            values = (_values(row, columns, wanted, where) for row in chain([first] * bool(first), rows))
            yield Table(columns=columns, rows=numbered(values))
        return
    columns = wanted.found(list(stream.features), where, partial(_sample, spec, stream))
    # A column that is null in the first block says nothing of its kind, and what comes later would not fit it.
    empty = [name for name, kind in stream.features.items() if kind == datasets.Value("null")]
    if empty:
        texts = set(columns) - set(CHATS)
        kinds = {name: datasets.Value("string") if name in texts else datasets.Json() for name in empty}
        stream = load(features=datasets.Features({**stream.features, **kinds}))
    # The other columns may hold images or sound, which need decoders that nobody asked for.
    with closing(_rows(spec, stream.select_columns(list(columns)))) as rows:
        yield Table(columns=columns, rows=numbered(_values(row, columns, wanted, where) for row in rows))


def _values(row: Mapping[str, Any], columns: Sequence[str], wanted: Wanted, where: str) -> Sequence[Any]:
    if any(key not in row for key in columns):
        replace(wanted, chats=False, columns=tuple(columns)).found(list(row), where, lambda: [row])
    return tuple(row[key] for key in columns)


def _rows(spec: TextSpec | TaskSpec, stream: Any) -> Generator[Mapping[str, Any]]:
    rows: Any = iter(stream)
    try:
        while True:
            with _library_errors(spec):
                row = next(rows, None)
            if row is None:
                return
            yield row
    finally:
        # A parquet file that was not read to its end has threads of pyarrow, and a process that ends while they live is
        # aborted (apache/arrow 45214; datasets 5.2 collects only for pyarrow up to 24): end them now.
        rows.close()
        rows = None
        gc.collect()


def _sample(spec: TextSpec | TaskSpec, stream: Any) -> list[Mapping[str, Any]]:
    """Return the first rows, of the columns that may hold text."""
    kept = [name for name, kind in stream.features.items() if getattr(kind, "dtype", "") == "string" or name in CHATS]
    if not kept:
        return []
    with closing(_rows(spec, stream.select_columns(kept))) as rows:
        return list(islice(rows, 8))


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
    except (DatasetsError, httpx2.HTTPError, OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise _problem(spec, error) from error


def _problem(spec: TextSpec | TaskSpec, error: Exception) -> ShortvizError:
    """Return the library's error as one sentence for people."""
    import httpx2
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    name = spec.value
    subset, split = ("`task_subset`", "`task_split`") if isinstance(spec, TaskSpec) else ("`subset`", "`split`")
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
