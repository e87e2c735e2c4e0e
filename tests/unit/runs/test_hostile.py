"""Damaged archives, runs of wrong types, and one training update that no stop could end: refused in a sentence."""

import json

import pytest

from shortviz.errors import PolicyError, RunError
from shortviz.records.heal import HealSettings
from shortviz.records.json import plain
from shortviz.runs.run import example_run
from shortviz.runs.zip import pack_run, unpack_run
from shortviz.service import policy
from shortviz.settings import Settings


def test_a_zip_that_was_damaged_on_its_way_is_refused_by_name() -> None:
    whole = pack_run(example_run())
    for place in range(100, 3000, 97):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        with pytest.raises(RunError, match="the file"):
            unpack_run(bytes(damaged), "the file")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("text", "fingerprint"), 7),
        (("losses", "text", "rows"), "x"),
        (("losses", "base", "nll"), "x"),
        (("evaluations", 0, "score", "nll"), None),
        (("evaluations", 0, "kl"), 10**400),
        (("ledgers", 0, "removed", 0), -1),
        (("ledgers", 0, "steps", 0, "name"), 7),
        (("model", "revision"), 7),
        (("versions",), "x"),
    ],
)
def test_a_run_of_wrong_types_is_refused_on_import(path: tuple[str | int, ...], value: object) -> None:
    found = plain(example_run())
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(RunError, match="the file"):
        unpack_run(json.dumps(found).encode(), "the file")


@pytest.mark.parametrize(
    "changes", [{"accumulate": 10**6}, {"batch_size": 10**6}, {"rank": 10**6}, {"batch_size": 10**400}]
)
def test_one_update_of_a_training_has_a_limit_where_strangers_use_the_app(changes: dict[str, int]) -> None:
    with pytest.raises(PolicyError):
        policy.check(Settings(hosted=True), HealSettings(**changes))
    policy.check(Settings(hosted=True), HealSettings())
