"""Rows of a hub data set, streamed with the `datasets` library: only the rows that are used are fetched."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from shortviz.errors import ResourceError, ShortvizError, TextError
from shortviz.records import TextSpec
from shortviz.text_sources import checked_rows, missing_column

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
    rows = checked_rows(enumerate(islice(_values(spec), limit)), name, spec.key)
    subset = f", subset {spec.subset}" if spec.subset else ""
    return rows, f"{name}{subset}, split {spec.split}, column {spec.key}, first {limit} rows"


def _values(spec: TextSpec) -> Iterator[Any]:
    stream = _open(spec)
    rows = iter(stream)
    while True:
        try:
            row = next(rows, None)
        except _library_errors() as error:
            raise _problem(spec, error) from error
        if row is None:
            return
        if spec.key not in row:
            raise missing_column(spec.key, f"data set {spec.value}", row)
        yield row[spec.key]


def _open(spec: TextSpec) -> Any:
    if not spec.value.strip():
        raise TextError("No data set was named; give a hub id such as allenai/c4.")
    import datasets

    try:
        stream = datasets.load_dataset(spec.value, spec.subset, split=spec.split, streaming=True)
    except _library_errors() as error:
        raise _problem(spec, error) from error
    columns = stream.column_names
    if columns is None:
        return stream
    if spec.key not in columns:
        raise missing_column(spec.key, f"data set {spec.value}", columns)
    # The other columns may hold images or sound, which need decoders that nobody asked for.
    return stream.select_columns([spec.key])


def _library_errors() -> tuple[type[Exception], ...]:
    from datasets.exceptions import DatasetsError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # exported on demand, for any of its versions

    return (DatasetsError, httpx.HTTPError, OSError, ValueError, RuntimeError, KeyError)


def _problem(spec: TextSpec, error: Exception) -> ShortvizError:
    """Return the library's error as one sentence for people."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # exported on demand, for any of its versions

    name = spec.value
    text = " ".join(str(error).split()).rstrip(".")
    chain = (error, error.__cause__, error.__context__)
    if "gated" in text:
        return TextError(f"Data set {name} is gated; accept its terms on the hub and log in with `hf auth login`.")
    if "scripts are no longer supported" in text:
        return TextError(
            f"Data set {name} needs code of its own, which is never run; choose one with plain data files."
        )
    if isinstance(error, DatasetNotFoundError):
        return TextError(f"There is no data set {name} on the hub, or it is private; check its id.")
    if any(isinstance(e, ConnectionError | TimeoutError | httpx.TransportError) for e in chain):
        return ResourceError(
            f"The hub cannot be reached for data set {name}; check the network or use a built-in text."
        )
    if "Config name is missing" in text or ("BuilderConfig" in text and "not found" in text):
        return TextError(
            f"Data set {name} has no subset {spec.subset!r}; choose one with --subset ({_available(text)})."
        )
    if "Bad split" in text:
        return TextError(f"Data set {name} has no split {spec.split!r}; choose one with --split ({_available(text)}).")
    return TextError(f"Data set {name} cannot be read: {text[:300]}; try another one.")


def _available(text: str) -> str:
    """Return the list that the library's message holds, without its brackets."""
    _, _, rest = text.partition("[")
    return "there are: " + rest.partition("]")[0].replace("'", "")
