"""What a cut model can still do: flips, McNemar's test, probes that can tell, speed in turns."""

import math
from dataclasses import replace

import pytest

from shortviz.analysis.evidence import cannot_tell, evidence_table, flips, mcnemar, notes, speed
from shortviz.records.json import from_json, to_json
from shortviz.records.ledger import (
    Ledger,
    Pace,
    Probe,
    ProbeItem,
    ProbeScore,
    StepEvidence,
    merged,
    start_ledger,
    with_evidence,
)
from shortviz.records.plan import Block
from tests.support.records import fixture_evaluation, fixture_model


@pytest.mark.parametrize(("one", "other", "p"), [(4, 0, 0.125), (1, 9, 22 / 1024), (3, 3, 1.0), (0, 0, 1.0)])
def test_mcnemars_exact_test_is_a_fair_coin(one: int, other: int, p: float) -> None:
    assert mcnemar(one, other) == pytest.approx(p)
    assert mcnemar(other, one) == pytest.approx(p)


def test_flips_count_both_ways_and_the_share_retained_has_a_paired_error() -> None:
    found = flips("1111100000", "1100010000")

    assert (found.right_to_wrong, found.wrong_to_right) == (3, 1)
    assert found.retained == pytest.approx(0.6)
    assert found.chance == pytest.approx(0.625)
    # By hand: residuals after - 0.6 before are 0.4 0.4 -0.6 -0.6 -0.6 1 0 0 0 0, their mean 0.
    squares = 2 * 0.16 + 3 * 0.36 + 1
    assert found.retained_stderr == pytest.approx(math.sqrt(squares / 9 / 10) / 0.5)
    same = flips("1100", "1100")
    assert (same.retained, same.retained_stderr, same.chance) == (1.0, 0.0, 1.0)
    assert math.isnan(flips("0000", "1000").retained)


@pytest.mark.parametrize(
    ("uncut", "cut", "busy"),
    [
        ((1.0, 1.0, 1.01, 1.0, 1.0, 1.02), (0.8, 0.81, 0.8, 0.8, 0.82, 0.8), False),
        ((1.0, 1.5, 1.4, 1.3, 1.6, 1.4), (0.8, 0.9, 0.9, 1.0, 1.2, 1.2), True),  # the spread exceeds the gain
        ((1.0, 1.0, 1.0, 1.0, 1.0, 1.0), (1.1, 1.1, 1.1, 1.1, 1.1, 1.1), True),  # the cut came out slower
        ((1.1, 1.11, 1.1, 1.12, 1.1, 1.3), (1.0, 1.01, 1.02, 1.0, 1.0, 1.4), True),  # in one turn it did
    ],
)
def test_a_speed_is_refused_where_the_machine_is_busy(
    uncut: tuple[float, ...], cut: tuple[float, ...], busy: bool
) -> None:
    found = speed(Pace(name="decode", tokens=32, uncut=uncut, cut=cut))

    assert found.busy is busy
    assert found.ratio == pytest.approx(min(uncut) / min(cut))


def _ledger() -> Ledger:
    ledger = start_ledger(fixture_evaluation(fixture_model(), Block(start=12, n=4)))
    items = tuple(ProbeItem(question=f"{i}", answer=f"{i}") for i in range(40))
    probes = tuple(Probe(name=name, seed=0, examples="", items=items) for name in ("copy", "addition"))
    probes += (Probe(name="facts", seed=0, examples="", items=(), refused="The tokenizer cannot write it."),)
    for step, right in zip(ledger.steps, (30, 15), strict=True):
        scores = [
            ProbeScore(probe=name, seed=0, right=("1" * n).ljust(40, "0"), written=("x",) * 40)
            for name, n in (("copy", right), ("addition", 1))
        ]
        ledger = with_evidence(ledger, step, StepEvidence(probes=tuple(scores), disk_bytes=10**9))
    pace = Pace(name="decode", tokens=32, uncut=(2.0, 2.0, 2.0), cut=(1.0, 1.0, 1.0))
    return replace(ledger, probes=probes, paces=(pace,))


def test_a_probe_whose_ceiling_is_near_zero_says_that_it_cannot_tell_anything() -> None:
    ledger = _ledger()

    assert cannot_tell(ledger, ledger.probes[0]) == ""
    assert "cannot tell anything: the uncut model itself gets 1 of 40 right" in cannot_tell(ledger, ledger.probes[1])
    assert cannot_tell(ledger, ledger.probes[2]) == "The tokenizer cannot write it."
    assert len([words for words in notes(ledger) if "cannot" in words]) == 2


def test_the_table_shows_the_uncut_models_score_first_and_the_computed_share_by_its_name() -> None:
    rows = {row[0]: row[1:] for row in evidence_table(_ledger(), fixture_model()).rows}

    assert rows["probe copy"][0] == "30 of 40"
    assert rows["probe copy"][1].startswith("15 of 40 (50.0 ± ")
    assert rows["probe addition"] == ["1 of 40", "1 of 40"]
    assert "probe facts" not in rows
    assert rows["decode"] == ["16 tokens/s", "× 2.00"]
    assert rows["operations and weight bytes, computed"][0] == "100 %"
    assert rows["weights on disk"] == ["1.0 GB", "1.0 GB"]


def test_evidence_outlives_json_and_a_ledger_that_is_opened_again() -> None:
    ledger = _ledger()
    anew = start_ledger(fixture_evaluation(fixture_model(), Block(start=12, n=4)))

    assert from_json(Ledger, to_json(ledger)) == ledger
    kept = merged(ledger, anew)
    assert (kept.probes, kept.paces) == (ledger.probes, ledger.paces)
    assert [step.evidence for step in kept.steps] == [step.evidence for step in ledger.steps]
