"""Records as JSON, and back, by pydantic over the dataclasses themselves: types for their fields, and four functions.

NaN is null: a number that could not be had, as the error of one window. Inf, which JSON does not have either, too.
No torch.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from itertools import chain
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, FailFast, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, core_schema

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Array:
    """Tells pydantic how a numpy array is nested lists; read strictly, for np.array would take texts as numbers."""

    dtype: type[np.float64] | type[np.int64]
    depth: int | None = None
    """Dimensions; None is any."""
    triangle: bool = False
    """Shape (L, L), of which row n-1 has L-n+1 numbers, by start; the others are NaN, or 0."""

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> core_schema.CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(self.write)
        return core_schema.no_info_plain_validator_function(self.read, serialization=written)

    def __get_pydantic_json_schema__(self, schema: object, handler: object) -> dict[str, Any]:
        numbers = {"type": ["number", "null"]} if self.dtype is np.float64 else {"type": "integer"}
        return {"type": "array", "items": {"type": "array", "items": numbers}} if self.triangle else {"type": "array"}

    def write(self, array: NDArray[Any]) -> list[Any]:
        rows: list[Any] = array.tolist()
        return [row[: len(rows) - i] for i, row in enumerate(rows)] if self.triangle else rows

    def read(self, rows: Any) -> NDArray[Any]:
        if type(rows) is not list:
            raise _wrong("a list of numbers is expected")
        if not self.triangle:
            return self._rectangle(rows)
        size = len(rows)
        for i, row in enumerate(rows):
            if type(row) is not list or len(row) != size - i:
                found = len(row) if type(row) is list else "no"
                raise _wrong(f"row {i + 1} has {found} numbers, {size - i} are expected")
        values = np.full((size, size), math.nan if self.dtype is np.float64 else 0, dtype=self.dtype)
        values[np.tri(size, dtype=bool)[::-1]] = self._numbers(list(chain.from_iterable(rows)))
        return values

    def _rectangle(self, rows: list[Any]) -> NDArray[Any]:
        shape = [len(rows)]
        while rows and type(rows[0]) is list:
            shape.append(len(rows[0]))
            if any(type(row) is not list or len(row) != shape[-1] for row in rows):
                raise _wrong("its rows are not of one length")
            rows = list(chain.from_iterable(rows))
        if self.depth not in (None, len(shape)):
            raise _wrong(f"lists of {self.depth} levels are expected, not of {len(shape)}")
        return self._numbers(rows).reshape(shape)

    def _numbers(self, values: list[Any]) -> NDArray[Any]:
        if not set(map(type, values)) <= ({int, float, type(None)} if self.dtype is np.float64 else {int}):
            raise _wrong("it holds something else than numbers")
        try:
            return np.array(values, dtype=self.dtype)  # None is NaN
        except OverflowError as error:
            raise _wrong("it holds a number that is too large") from error


def _wrong(what: str) -> PydanticCustomError:
    return PydanticCustomError("array", "{what}", {"what": what})


def _nan(value: Any) -> Any:
    return math.nan if value is None else value


_Null = BeforeValidator(_nan, json_schema_input_type=float | None)
Number = Annotated[float, _Null]
"""A float that may be NaN."""
Known = Annotated[float | None, _Null, Field(exclude_if=lambda value: value is None)]
"""A float that may be NaN, and None where there is none: then its key is left out, for null is NaN."""
Many = Annotated[tuple[T, ...], FailFast()]
"""A tuple of any length. Without FailFast a hostile file of 50 MB makes 4 GB of error messages."""
Some = Annotated[tuple[T, ...], FailFast(), Field(exclude_if=lambda value: not value)]
"""A tuple whose key is left out where it is empty: what records did not always have, and most have not."""
Floats = Annotated[NDArray[np.float64], _Array(dtype=np.float64)]
FloatVector = Annotated[NDArray[np.float64], _Array(dtype=np.float64, depth=1)]
FloatMatrix = Annotated[NDArray[np.float64], _Array(dtype=np.float64, depth=2)]
Integers = Annotated[NDArray[np.int64], _Array(dtype=np.int64)]
FloatTriangle = Annotated[NDArray[np.float64], _Array(dtype=np.float64, triangle=True)]
IntegerTriangle = Annotated[NDArray[np.int64], _Array(dtype=np.int64, triangle=True)]


_adapters: dict[type, TypeAdapter[Any]] = {}


def adapter(kind: type) -> TypeAdapter[Any]:
    """Return what checks, reads and writes a kind of record; made once, for it takes some 20 ms for a run."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def to_json(record: Any) -> bytes:
    """Return a record as JSON text; floats come back as they were, to the last bit."""
    return adapter(type(record)).dump_json(record)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: a record as `to_json` writes it, mappings and sequences of them; NaN as null."""
    if is_dataclass(value):
        return json.loads(to_json(value))
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(kind: type[T], text: str | bytes) -> T:
    """Return the record that `to_json` wrote; raises ValueError: the path of the first wrong value, and why."""
    try:
        found: T = adapter(kind).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        raise ValueError(_reason(error)) from None
    return found


def from_plain(kind: type[T], found: Any) -> T:
    """Return the record of a JSON object; raises as `from_json` does."""
    return from_json(kind, json.dumps(found))


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path, why = ".".join(map(str, first["loc"])), first["msg"]
    return f"{' '.join(path.split())[:200]}: {why[0].lower()}{why[1:]}" if path else why
