"""Rows of a hub data set, streamed with the `datasets` library: only the rows that are used are fetched."""

import gc
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from shortviz.errors import ResourceError, ShortvizError, TextError
from shortviz.records import TaskSpec, TextSpec
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
