"""Advice for a budget: chosen from what was measured, unsure where the text is, and refused in one sentence."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from shortviz.analysis.advice import advise
from shortviz.cli.runs import advice_text
from shortviz.errors import PlanError
from shortviz.records.advice import Budget, parse_bytes
from shortviz.records.ledger import add_step
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.runs.run import example_run, save_run, with_evaluation, with_ledger
from tests.support.ledgers import REPAIR, fixture_ledger, windows_nll, with_windows
from tests.support.maps import LAYERS, losses_of, triangle
from tests.support.records import fixture_evaluation, fixture_model, fixture_run


def measured_run(**cells: float) -> Run:
    """A run of LAYERS layers whose block (start, n) costs n nats, but for the cells named `start_n`; errors 0.01."""
    values = np.where(np.isnan(triangle()), np.nan, np.arange(1, LAYERS + 1)[:, None] * 1.0)
    for name, value in cells.items():
        start, n = map(int, name.removeprefix("at_").split("_"))
        values[n - 1, start] = value
    losses = losses_of(values)
    errors = np.where(np.isnan(values), np.nan, 0.01)
    many = np.where(np.isfinite(values), 8000, 0)
    losses = replace(losses, increase=replace(losses.increase, stderr=errors), tokens=many)
    return replace(fixture_run(LAYERS), losses=losses, evaluations=())


def test_the_cheapest_measured_block_of_a_size_is_proposed_with_its_ties() -> None:
    run = measured_run(at_1_2=0.5, at_2_2=0.52, at_0_2=0.6)
    found = advise(run, Budget(layers=2))
    assert found.measured
    assert found.plan.removed == (1, 2)
    assert [c.removed for c in found.ties] == [(2, 3)], "0.02 is within two errors of a difference, 0.1 is not"
    assert found.parameters == run.model.parameters - 2 * run.model.layer_parameters[0]
    assert "best of" in advice_text(found)


def test_a_plan_that_removes_more_and_loses_less_is_preferred() -> None:
    found = advise(measured_run(at_1_3=0.4), Budget(layers=2))
    assert found.plan.removed == (1, 2, 3)
    assert "removes 3 layers, more than asked for" in advice_text(found)


def test_bare_plans_are_compared_as_they_are_cut_and_tell_what_a_repair_made_of_the_chosen_one() -> None:
    run = example_run()
    (ledger,) = run.ledgers
    alone = replace(run, losses=None, evaluations=())
    treated = advise(alone, Budget(layers=4))
    assert treated.plan.methods, "repaired plans win where they are compared too"
    assert treated.repaired is None
    bare = advise(alone, Budget(layers=4), bare=True)
    assert (bare.plan.removed, bare.plan.methods) == (ledger.removed, ())
    assert bare.repaired is not None
    assert bare.repaired.increase == treated.plan.increase < bare.plan.increase
    assert bare.expected is not None, "the share that repairs won back is still told"


def test_a_limit_on_the_increase_removes_as_much_as_fits_and_says_when_it_is_close() -> None:
    run = measured_run(at_1_3=0.995, at_0_3=0.999, at_0_4=1.2)
    found = advise(run, Budget(max_increase=1.0))
    assert found.plan.removed == (1, 2, 3)
    assert [c.removed for c in found.ties] == [(0, 1, 2)]
    assert "Within two errors it may also be above the limit of 1 nats." in found.notes
    assert advise(run, Budget(max_increase=1.3)).plan.removed == (0, 1, 2, 3)


def test_a_size_in_bytes_counts_what_stays() -> None:
    run = measured_run(at_1_2=0.5)
    two_less = run.model.bytes - 2 * run.model.layer_bytes[0]
    assert advise(run, Budget(bytes=two_less)).plan.removed == (1, 2)
    assert len(advise(run, Budget(bytes=two_less - 1)).plan.removed) == 3


def test_a_scattered_evaluation_beats_blocks_and_an_illegal_block_is_passed_over() -> None:
    run = measured_run(at_1_2=0.5)
    model = replace(run.model, illegal=((1, 2, "no"),))
    assert advise(replace(run, model=model), Budget(layers=2)).plan.removed != (1, 2)
    scattered = replace(fixture_evaluation(model, Block(start=0, n=2)), removed=(0, 3), nll_increase=0.2)
    found = advise(with_evaluation(run, scattered), Budget(layers=2))
    assert (found.plan.removed, found.plan.source) == ((0, 3), "evaluation")
    assert "Some of the tied plans" not in advice_text(found)


def test_a_repaired_cut_is_proposed_with_its_repair_and_rivals_are_compared_in_pairs() -> None:
    run = with_ledger(replace(fixture_run(30), evaluations=()), fixture_ledger(healed=False))
    found = advise(run, Budget(layers=4))
    assert (found.plan.removed, found.plan.methods) == ((12, 13, 14, 15), ("seam_refit",))
    assert advice_text(found).startswith("Remove 4 layers, 12-15, then seam refit: NLL +0.39")
    assert found.ties == (), "the unrepaired cut is clearly worse"
    assert "The run has no measured map: only the cuts that were evaluated were compared." in found.notes
    plain, base = fixture_evaluation(fixture_model(30), Block(start=12, n=4)), windows_nll(0.0, seed=1)
    near = with_windows(plain, windows_nll(0.4, seed=3) + 0.0005 * np.sin(np.arange(16)), base)
    both = with_ledger(run, add_step(run.ledgers[0], "repaired", near, [replace(REPAIR, method="linear_fold")]))
    (tie,) = advise(both, Budget(layers=4)).ties
    assert {tie.methods, advise(both, Budget(layers=4)).plan.methods} == {("linear_fold",), ("seam_refit",)}


def test_an_unrepaired_plan_says_what_repairs_of_this_run_won_back() -> None:
    run = with_ledger(replace(fixture_run(30), evaluations=()), fixture_ledger(healed=False))
    better = replace(fixture_evaluation(run.model, Block(start=20, n=5)), nll_increase=0.1)
    found = advise(with_evaluation(run, better), Budget(layers=4))
    assert found.plan.removed == (20, 21, 22, 23, 24)
    assert found.expected_method == "seam_refit"
    assert "Not repaired yet: seam refit of other cuts in this run won back 39.3 % of what they lost." in advice_text(
        found
    )
    rival = replace(better, removed=(20, 21, 22, 23), nll_increase=0.5)
    assert "repair that one too" in advice_text(advise(with_evaluation(run, rival), Budget(layers=4)))


def test_without_losses_distances_are_a_fallback_that_says_so_and_keeps_the_sink() -> None:
    run = replace(fixture_run(30), evaluations=())
    found = advise(run, Budget(layers=3))
    assert not found.measured
    assert len(found.plan.removed) == 3
    assert not set(found.plan.removed) & set(run.distances.norms.sink_layers)
    assert "not what removing it costs; measure it" in advice_text(found)
    with pytest.raises(PlanError, match="Nothing was measured in this run"):
        advise(run, Budget(max_increase=0.5))
    with pytest.raises(PlanError, match="Nothing was measured in this run"):
        advise(replace(run, distances=None), Budget(layers=3))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(max_increase=0.001), "No measured cut raises .* the least is .* raise the limit"),
        (Budget(layers=30), "demo has 30 layers, so at most 29 can go; 30 is too many"),
        (Budget(bytes=50_000_000), "takes at least 127 MB with one layer left"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(budget: Budget, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        advise(example_run(), budget)


def test_a_budget_is_exactly_one_limit_above_zero() -> None:
    for bad in ({}, {"layers": 2, "bytes": 3}, {"layers": 0}, {"max_increase": math.nan}, {"max_increase": -1.0}):
        with pytest.raises(PlanError):
            Budget(**bad)
    assert [parse_bytes(t) for t in ("400MB", "1.5 gb", "12", "3kb")] == [400_000_000, 1_500_000_000, 12, 3000]
    for bad_size in ("4XB", "", "MB", "-3MB", "1e9"):
        with pytest.raises(PlanError, match="is not a size"):
            parse_bytes(bad_size)


def test_the_command_proposes_in_words_and_as_json(shortviz, tmp_path) -> None:
    run = example_run()
    save_run(run, tmp_path)
    code, out, _ = shortviz("advise", str(tmp_path), "--bytes", "450MB")
    assert code == 0
    assert "nats a token (measured map," in out
    code, out, _ = shortviz("advise", str(tmp_path), "--layers", "4", "--json")
    found = json.loads(out)
    assert list(found) == [
        "budget", "measured", "plan", "ties", "compared", "parameters", "bytes", "expected", "expected_method",
        "repaired", "notes",
    ]  # fmt: skip
    assert list(found["plan"]) == [
        "removed", "methods", "increase", "stderr", "tokens", "windows", "source", "text"
    ]  # fmt: skip
    uncut, *steps = (step.evaluation.score.nll for step in run.ledgers[0].steps)  # of a cut of four layers
    treated = min(steps) - uncut
    best = min(run.losses.increase.row(n).min() for n in range(4, 30))
    assert found["plan"]["increase"] == pytest.approx(min(best, treated), abs=1e-3)
    for arguments in ((), ("--layers", "2", "--bytes", "1GB"), ("--bytes", "4XB"), ("--layers", "99")):
        code, out, err = shortviz("advise", str(tmp_path), *arguments)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
