"""Files with columns: JSON, JSON lines, CSV and Parquet, plain or packed, read no further than rows are asked for.

Rows count from 0, lines from 1, as editors do. What had to be found out (a separator, a column) is told with the rows.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO, cast

from shortviz.errors import TextError, first_line
from shortviz.settings import settings
from shortviz.text.chats import is_chat

_JSON, _CSV = (".json", ".jsonl", ".ndjson"), (".csv", ".tsv")
TABLES = (*_JSON, *_CSV, ".parquet")
"""Files of several columns; any other is one row of text."""
PACKED = {".bz2": "bz2", ".gz": "gzip", ".zst": "zstd"}
"""Endings of packed files, and what pyarrow calls the packing."""
_PACKED_OTHERWISE = (".7z", ".lz4", ".rar", ".tar", ".tgz", ".xz", ".zip")
CHATS = ("messages", "conversations")
"""Columns that are read where there is no column `text`: they hold chats."""
SUFFIXES = (".txt", *TABLES, *(kind + end for end in PACKED for kind in (".txt", *_JSON, *_CSV)))
"""Names of files that can be read, as people are told."""
MOST_UNPACKED = 4_000_000_000
"""Bytes that a packed file may hold: one of a few kilobytes can unpack to more than any disk has."""
_PEEKED = 65_536
"""Bytes that are looked at to find out how a file is written."""
_SAMPLE = 8
"""Rows that a proposal of a column rests on."""
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is to be taken of a table."""

    columns: tuple[str, ...]
    field: str = "`key`"
    """What chooses a column, for errors."""
    may_lack: str | None = None
    """A column that a row of JSON may lack: None is read there."""
    chats: bool = False
    """Whether a column of chats may stand in for the column `text`."""

    def found(
        self,
        names: Sequence[str],
        where: str,
        sample: Callable[[], Iterable[Mapping[str, Any]]],
        lacks: str | None = None,
    ) -> tuple[str, ...]:
        """Return the columns to read of those that there are; raises TextError for one that is not there, or twice.

        `sample` gives some rows, for a proposal; the column `lacks` need not be there.
        """
        counts = Counter(names)
        if self.chats and self.columns == ("text",) and "text" not in counts:
            chats = [name for name in CHATS if name in counts]
            if chats:
                return (chats[0],)
        for key in self.columns:
            if key not in counts and key != lacks:
                listed = ", ".join(dict.fromkeys(names)) or "none"
                choose = f"Choose one of them with {self.field}{self._proposal(sample)}."
                raise TextError(f"There is no column {key!r} in {where}; it has: {listed}. {choose}")
            if counts[key] > 1:
                raise TextError(f"{counts[key]} columns of {where} are called {key!r}; give each a name of its own.")
        return self.columns

    def _proposal(self, sample: Callable[[], Iterable[Mapping[str, Any]]]) -> str:
        if len(self.columns) > 1:
            return ""
        texts = text_columns(sample())
        if not texts:
            return ""
        what = "only" if len(texts) == 1 else "the longest text is in"
        verb = " holds text" if len(texts) == 1 else ""
        return f"; {what} {texts[0]!r}{verb} ({self.field} {quote(texts[0])})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Some columns of a file or data set."""

    columns: tuple[str, ...]
    """Which are read: those that were wanted, or a column of chats."""
    rows: Iterator[tuple[str, Sequence[Any]]]
    """(place, values of the columns): the place is `row 3`, from 0, or in JSON lines `line 4`, from 1."""
    told: str = ""
    """What had to be found out, e.g. `columns separated by semicolons`."""


def text_columns(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the columns that hold text in these rows, the longest text first, then those that hold chats."""
    texts, chats = Counter[str](), Counter[str]()
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str):
                texts[name] += len(value.strip())
            elif is_chat(value):
                chats[name] += 1
    return tuple(name for found in (texts, chats) for name, count in found.most_common() if count)


def first_rows(path: Path) -> list[Mapping[str, Any]]:
    """Return a few rows of a table, all of their columns; raises as `file_table`."""
    kind = kind_of(path)
    with opened(path) as file:
        if kind in _JSON:
            return [entry for _, entry in islice(_json_entries(file, path, "text"), _SAMPLE)]
        if kind in _CSV:
            frame = _csv(file, path, _SAMPLE).frame
            return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
        with _parquet(file, path) as found, _parquet_errors(path):
            return list(_parquet_sample(found))


def kind_of(path: Path) -> str:
    """Return the ending that says how a file is written, in small letters and without that of its packing."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Yield an open file, unpacked as it is read; raises TextError where there is none that can be read."""
    if not str(path).strip() or str(path) == ".":
        raise TextError("No file was named; give the path of a text file.")
    try:
        found = path.exists()
    except OSError as error:
        raise TextError(f"The file {path} cannot be read ({error.strerror}); check the path.") from error
    if not found and path.parent == settings().uploads_dir:
        raise TextError("The uploaded file is no longer on the server; give it again.")
    if not found:
        raise TextError(f"There is no file {path}; check the path.")
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "not a regular file"
        raise TextError(f"{path} is {kind}; give a text, .json, .jsonl, .csv or .parquet file.")
    if path.suffix.lower() in _PACKED_OTHERWISE:
        raise TextError(f"{path} is packed in a way that is not read here; unpack it, or pack the file as .gz.")
    try:
        file = path.open("rb", buffering=_PEEKED)
    except OSError as error:
        raise TextError(f"The file {path} cannot be read ({error.strerror}); check its permissions.") from error
    with file:
        if path.suffix.lower() in PACKED:
            yield io.BufferedReader(_Unpacked(file, path), _PEEKED)
        else:
            yield file


class _Unpacked(io.RawIOBase):
    """What a packed file holds, up to `MOST_UNPACKED` bytes."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        import pyarrow as pa

        self._path, self._left = path, MOST_UNPACKED
        self._stream: Any = pa.CompressedInputStream(file, PACKED[path.suffix.lower()])

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; raises TextError where the packing is broken, or holds too much."""
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            raise TextError(
                f"{self._path} cannot be unpacked ({first_line(error)}); check that it is complete."
            ) from error
        self._left -= len(data)
        if self._left < 0:
            raise TextError(
                f"{self._path} unpacks to more than {MOST_UNPACKED / 1e9:g} GB; unpack it and give a part of it."
            )
        buffer[: len(data)] = data
        return len(data)


def holds_more(path: Path, most: int) -> bool:
    """Tell whether a file holds more than so many bytes once it is unpacked; no more of it than that is unpacked.

    Raises TextError where it cannot be read.
    """
    if kind_of(path) == ".parquet":
        return _parquet_holds_more(path, most)
    with opened(path) as file:
        return any(left < 0 for left in _left(file, most))


def _left(file: BinaryIO, most: int) -> Iterator[int]:
    while data := file.read(_PEEKED):
        most -= len(data)
        yield most


def _parquet_holds_more(path: Path, most: int) -> bool:
    """Tell it of a Parquet file, whose columns are packed each by itself: a value that repeats is written once."""
    with opened(path) as file, _parquet(file, path) as found, _parquet_errors(path):
        groups = (found.metadata.row_group(i) for i in range(found.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > most:
            return True
        for batch in found.iter_batches(batch_size=_SAMPLE):
            most -= batch.nbytes
            if most < 0:
                return True
    return False


def decode(data: bytes, path: Path, line: int | None = None) -> str:
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


@contextmanager
def file_table(path: Path, wanted: Wanted, limit: int | None = None) -> Iterator[Table]:
    """Yield the wanted columns of a file; at most `limit` rows of a CSV file are read.

    Raises:
        TextError: no such file or column; it is broken.
    """
    kind = kind_of(path)
    with opened(path) as file:
        if kind in _JSON:
            yield _json_table(file, path, wanted)
        elif kind in _CSV:
            yield _csv_table(file, path, wanted, limit)
        else:
            found = _parquet(file, path)
            try:
                yield _parquet_table(found, path, wanted)
            finally:
                found.close()


# JSON


def _json_table(file: BinaryIO, path: Path, wanted: Wanted) -> Table:
    entries = _json_entries(file, path, wanted.columns[0])
    first = next(entries, None)
    if first is None:
        return Table(columns=wanted.columns, rows=iter(()))
    place, entry = first

    def sample() -> Iterator[Mapping[str, Any]]:
        yield entry
        with suppress(TextError):
            yield from (one for _, one in islice(entries, _SAMPLE - 1))

    columns = wanted.found(list(entry), f"{place} of {path}", sample, wanted.may_lack)

    def rows() -> Iterator[tuple[str, Sequence[Any]]]:
        same, needed = replace(wanted, columns=columns, chats=False), [key for key in columns if key != wanted.may_lack]
        for where, one in chain([first], entries):
            if any(key not in one for key in needed):
                same.found(list(one), f"{where} of {path}", partial(list, [one]), wanted.may_lack)
            yield where, [one.get(key) for key in columns]

    return Table(columns=columns, rows=rows())


def _json_entries(file: BinaryIO, path: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) of JSON lines, or of one array of objects; `key` is for the error's example.

    A file called .json may be either, for both are called so.
    """
    if kind_of(path) == ".json" and not _is_lines(first := file.readline()):
        whole = _loaded(decode(first + file.read(), path), str(path), "mend it, or call it .txt if it is plain text")
        entries = whole if isinstance(whole, list) else [whole]
        for number, entry in enumerate(entries):
            where = f"Row {number} (from 0) of {path}" if isinstance(whole, list) else f"{path}"
            yield f"row {number}", _object(entry, where, "each row", key)
        return
    lines = chain([first], file) if kind_of(path) == ".json" else file
    for number, data in enumerate(lines, start=1):
        line = decode(data, path, number).strip()
        if line:
            where = f"Line {number} of {path}"
            yield f"line {number}", _object(_loaded(line, where), where, "each line", key)


def _is_lines(first: bytes) -> bool:
    """Tell whether a file that begins with this line is JSON lines."""
    try:
        return isinstance(json.loads(first.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _object(entry: Any, where: str, each: str, key: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise TextError(
            f'{where} is a JSON {type(entry).__name__}, not an object; {each} must look like {{"{key}": "..."}}.'
        )
    return entry


def _loaded(text: str, where: str, advice: str = "mend or remove it") -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        at = f", line {error.lineno}" if "\n" in text.strip() else ""
        raise TextError(f"{where} is not JSON ({error.msg}{at}); {advice}.") from error
    except RecursionError as error:
        raise TextError(f"{where} is not JSON (nested too deeply); {advice}.") from error
    except _NamedTwiceError as error:
        raise TextError(f"{where} names {error.args[0]!r} twice in one object; give each a name of its own.") from error


class _NamedTwiceError(Exception):
    """A name that stands twice in one JSON object; Python would keep the last of them in silence."""


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _NamedTwiceError(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return found


# CSV


@dataclass(frozen=True, kw_only=True, slots=True)
class _Csv:
    frame: Any
    names: list[str]
    """As in the header, but for one without a name; in the frame one that is there twice has got another name."""
    separator: str


def _csv(file: BinaryIO, path: Path, limit: int | None) -> _Csv:
    """Return the fields of at most `limit` rows as text; an empty field is empty text."""
    import pandas as pd

    peeked = cast(io.BufferedReader, file).peek(_PEEKED)
    decode(peeked.partition(b"\n")[0], path)
    beginning = peeked.decode("utf-8-sig", errors="ignore")
    separator = _separator(beginning)
    kinds: Any = {"sep": separator, "dtype": str, "keep_default_na": False}
    try:
        names = pd.read_csv(io.StringIO(beginning), header=None, nrows=1, **kinds).iloc[0].tolist()
        found = pd.read_csv(file, nrows=limit, encoding="utf-8-sig", **kinds)
        names = [name or own for name, own in zip(names, found.columns, strict=False)]
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise TextError(
            f"{path} cannot be read as CSV ({first_line(error)}); check that its columns are separated by "
            f"{_SEPARATORS[separator]} and that it is UTF-8."
        ) from error
    if not isinstance(found.index, pd.RangeIndex):
        raise TextError(
            f"The rows of {path} have more fields than its header; quote fields that hold {_SEPARATORS[separator]}."
        )
    return _Csv(frame=found, names=names, separator=separator)


def _csv_table(file: BinaryIO, path: Path, wanted: Wanted, limit: int | None) -> Table:
    found = _csv(file, path, limit)
    columns = wanted.found(found.names, str(path), lambda: found.frame.head(_SAMPLE).to_dict("records"))
    told = f"columns separated by {_SEPARATORS[found.separator]}" if found.separator != "," else ""
    return Table(columns=columns, rows=numbered(found.frame[list(columns)].values.tolist()), told=told)


def _separator(sample: str) -> str:
    """Return what stands between columns: of what the header holds, what the csv module's sniffer takes for it."""
    lines = sample.lstrip("\r\n").splitlines(keepends=True)
    header = lines[0] if lines else ""
    candidates = [one for one in _SEPARATORS if one in header]
    if not candidates:
        return ","
    with suppress(csv.Error):
        # Not all of it: the sniffer takes seconds for long texts.
        found = csv.Sniffer().sniff("".join(lines[:50])[: _PEEKED // 4], "".join(candidates)).delimiter
        if found in candidates:
            return found
    return max(candidates, key=header.count)


def numbered(rows: Iterable[Sequence[Any]]) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield each row with its place, `row 0` and so on."""
    for number, row in enumerate(rows):
        yield f"row {number}", row


# Parquet


def _parquet(file: BinaryIO, path: Path) -> Any:
    """Return the open Parquet file."""
    import pyarrow.parquet as pq

    if path.suffix.lower() in PACKED:
        raise TextError(f"{path} is Parquet, which is packed in itself, packed once more; unpack it first.")
    with _parquet_errors(path):
        return pq.ParquetFile(file)


def _parquet_table(found: Any, path: Path, wanted: Wanted) -> Table:
    def rows() -> Iterator[Sequence[Any]]:
        with _parquet_errors(path):
            for batch in found.iter_batches(batch_size=64, columns=list(columns)):
                yield from zip(*(batch.column(key).to_pylist() for key in columns), strict=True)

    with _parquet_errors(path):
        columns = wanted.found(found.schema_arrow.names, str(path), partial(_parquet_sample, found))
    return Table(columns=columns, rows=numbered(rows()))


def _parquet_sample(found: Any) -> Iterator[dict[str, Any]]:
    for batch in islice(found.iter_batches(_SAMPLE), 1):
        yield from batch.to_pylist()


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise TextError(
            f"{path} cannot be read as Parquet ({first_line(error)}); check that it is complete."
        ) from error
