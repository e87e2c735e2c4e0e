"""Every record comes back from its JSON as it was, whatever stands in it; its schema is the one that is published."""

import json
import math
import pkgutil
import types
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shortviz.records
from shortviz.analysis import curve
from shortviz.measure import search
from shortviz.records import ledger
from shortviz.records.advice import Budget
from shortviz.records.formatting import Help
from shortviz.records.heal import HealSettings, OwnText
from shortviz.records.json import (
    FloatMatrix,
    Floats,
    FloatTriangle,
    FloatVector,
    Integers,
    IntegerTriangle,
    Known,
    Number,
    from_json,
    from_plain,
    plain,
    to_json,
)
from shortviz.records.measured import CurvePoint, Gate, GreedyRemoval
from shortviz.records.plan import PrunePlan, Removal
from shortviz.records.run import Run
from shortviz.records.text import TaskRow, TaskRows, TaskSpec, TextSpec, TokenSet, WindowSet, WindowSpec
from shortviz.repair.shrink import ShrinkStep
from shortviz.runs.run import example_run
from tests.support.records import assert_same

ROOMS = [import_module(f"shortviz.records.{one.name}") for one in pkgutil.iter_modules(shortviz.records.__path__)]
RECORDS = [
    *(one for room in ROOMS for one in vars(room).values() if is_dataclass(one) and one.__module__ == room.__name__),
    *(curve.RemovalCurve, search.RowBest, search.SearchResult, ShrinkStep),
]
RECORDS = [one for one in RECORDS if not one.__name__.startswith("_") and one.__name__ not in ("Table", "Column")]
NAMES = {"Ledger": ledger.Ledger, "GreedyRemoval": GreedyRemoval}

INTEGERS = st.integers(-(2**63), 2**63 - 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = st.floats(allow_infinity=False)


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[Any], dtype: type, depth: int | None, triangle: bool) -> Any:
    size = draw(st.integers(1, 4))
    shape = (
        (size, size) if triangle else tuple(draw(st.integers(1, 3)) for _ in range(depth or draw(st.integers(1, 3))))
    )
    drawn = draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
    array = np.array(drawn, dtype=dtype).reshape(shape)
    if triangle:
        array[~np.tri(size, dtype=bool)[::-1]] = np.nan if dtype is np.float64 else 0
    return array


KINDS: dict[Any, st.SearchStrategy[Any]] = {
    Number: NUMBERS,
    Known: st.none() | NUMBERS,
    Floats: arrays(NUMBERS, np.float64, None, False),
    FloatVector: arrays(NUMBERS, np.float64, 1, False),
    FloatMatrix: arrays(NUMBERS, np.float64, 2, False),
    FloatTriangle: arrays(NUMBERS, np.float64, 2, True),
    Integers: arrays(INTEGERS, np.int64, None, False),
    IntegerTriangle: arrays(INTEGERS, np.int64, 2, True),
    float: FINITE,
    int: INTEGERS,
    bool: st.booleans(),
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    type(None): st.none(),
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field, from its type alone."""
    origin, inner = get_origin(hint), get_args(hint)
    record = origin is Annotated and hasattr(inner[0], "__dataclass_fields__")
    if origin is Annotated and (record or get_origin(inner[0]) is tuple or isinstance(inner[1], Help)):
        return values_of(inner[0])  # Many, which cannot be hashed, or a field with its help or left out where empty
    if hint in KINDS:
        return KINDS[hint]
    if hasattr(hint, "__dataclass_fields__"):
        return records_of(hint)
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values_of, inner))
    if origin is tuple and inner[-1] is ...:
        return st.lists(values_of(inner[0]), max_size=2).map(tuple)
    if origin is frozenset:
        return st.frozensets(values_of(inner[0]), max_size=2)
    if origin is tuple:
        return st.tuples(*map(values_of, inner))
    return st.dictionaries(values_of(inner[0]), values_of(inner[1]), max_size=2)  # a Mapping


@st.composite
def records_of(draw: st.DrawFn, kind: Any) -> Any:
    hints = get_type_hints(kind, localns=NAMES, include_extras=True)
    own = CHECKED.get(kind, {})
    return kind(**{f.name: draw(own[f.name] if f.name in own else values_of(hints[f.name])) for f in fields(kind)})


COUNTS = st.integers(2, 2**40)
TOKENS = arrays(INTEGERS, np.int64, 2, False).filter(lambda tokens: tokens.shape[1] > 1)
CHECKED: dict[Any, dict[str, st.SearchStrategy[Any]]] = {
    TextSpec: {"limit": st.none() | COUNTS, "max_length": COUNTS},
    Gate: {"max_nll_increase": st.none() | st.floats(0, 1e9), "min_accuracy": st.none() | st.floats(0, 1)},
    OwnText: {
        **{"self_share": st.none() | st.floats(0.05, 1), "self_top_p": st.floats(0.05, 1)},
        **{"self_temperature": st.floats(0, 2)},
        **dict.fromkeys(("self_tokens", "self_length", "self_seed"), st.integers(2, 1000)),
    },
    Removal: {"layers": st.lists(st.integers(0, 99), min_size=1).map(tuple)},
    WindowSpec: {"window": COUNTS, "windows": COUNTS},
    TaskSpec: {
        "limit": st.none() | COUNTS,
        "choices": st.sampled_from([("choices",), ("a", "b")]),
        "first_label": st.sampled_from([0, 1]),
        "prompt": st.just("{question} ?"),
    },
    TaskRows: {"rows": st.tuples(values_of(TaskRow))},
    TokenSet: {"rows": st.tuples(arrays(INTEGERS, np.int64, 1, False).map(lambda row: np.append(row, 0)))},
    WindowSet: {"tokens": TOKENS},
    PrunePlan: {
        "num_layers": st.just(30),
        "removed": st.sets(st.integers(0, 29)).map(lambda s: tuple(sorted(s)[:9])),
    },
    Budget: {"layers": st.none(), "bytes": st.none(), "max_increase": st.floats(0.1, 10)},
    HealSettings: {
        **dict.fromkeys(("rank", "last_layers", "steps", "batch_size", "accumulate", "length", "eval_every"), COUNTS),
        **dict.fromkeys(("learning_rate", "temperature", "mix", "seam_weight"), st.floats(0.05, 1)),
        **{"dropout": st.floats(0, 0.9), "alpha": st.none() | COUNTS, "seed": COUNTS},
        **{"method": st.just("lora"), "warmup_steps": st.sampled_from([0, 2])},
    },
}


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_record_comes_back_from_its_json_as_it_was(kind: Any, data: st.DataObject) -> None:
    record = data.draw(records_of(kind))
    text = to_json(record)
    assert_same(from_json(kind, text), record)
    assert_same(from_plain(kind, plain(record)), record)
    assert json.dumps(plain({"one": [record]}), allow_nan=False)


def test_every_record_of_a_run_is_among_them() -> None:
    seen: set[Any] = set()

    def walk(hint: Any) -> None:
        if hasattr(hint, "__dataclass_fields__") and hint not in seen:
            seen.add(hint)
            for inner in get_type_hints(hint, localns=NAMES).values():
                walk(inner)
        for inner in get_args(hint):
            walk(inner)

    walk(Run)
    assert seen <= set(RECORDS)
    assert len(seen) > 10


def test_what_is_inf_is_null_as_nan_is() -> None:
    point = CurvePoint(n=1, removed=(), nll=1.0, stderr=math.inf)
    assert plain(point)["stderr"] is None
    assert math.isnan(from_json(CurvePoint, to_json(point)).stderr)


@pytest.mark.parametrize("key", ["example", "example-passages"])
def test_the_schema_that_is_published_is_that_of_the_bundled_runs(shortviz: Any, key: str) -> None:
    code, out, err = shortviz("schema")
    assert (code, err) == (0, "")
    schema = json.loads(out)
    jsonschema.Draft202012Validator.check_schema(schema)
    found = plain(example_run(key))
    jsonschema.validate(found, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found | {"model": 7}, schema)
