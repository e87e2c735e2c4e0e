"""The ledger of a cut: the share won back with its error, and what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from shortviz.cli.output import ledger_text
from shortviz.errors import ShortvizError
from shortviz.export.recipes import recipe_of
from shortviz.measure.losses import evaluate
from shortviz.model.prune import prune
from shortviz.records.json import to_json
from shortviz.records.ledger import add_step, gain, merged, not_better, recovered_share, start_ledger, verdicts
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.sums import paired_stderr
from shortviz.runs.run import load_run, save_run, with_ledger
from tests.support.families import shared_handle
from tests.support.ledgers import HEAL, REPAIR, fixture_ledger, windows_nll, with_windows
from tests.support.records import fixture_evaluation, fixture_model, fixture_run
from tests.support.tokens import window_set


def jackknife(uncut: np.ndarray, cut: np.ndarray, treated: np.ndarray) -> tuple[float, float]:
    """The share won back and its error by leaving out one window at a time, in plain numpy."""

    def share(keep: np.ndarray) -> float:
        return float(1 - (treated[keep].mean() - uncut[keep].mean()) / (cut[keep].mean() - uncut[keep].mean()))

    count = len(uncut)
    left_out = np.array([share(np.arange(count) != i) for i in range(count)])
    error = math.sqrt((count - 1) / count * float(np.square(left_out - left_out.mean()).sum()))
    return share(np.arange(count) >= 0), error


@pytest.mark.parametrize(("shift", "noise"), [(0.4, 0.02), (0.4, 0.15), (0.9, 0.1), (0.0, 0.05)])
def test_the_error_of_the_share_agrees_with_a_jackknife_over_windows(shift: float, noise: float) -> None:
    plain = fixture_evaluation(fixture_model(30), Block(start=12, n=4))
    uncut, cut, treated = (windows_nll(s, noise, seed) for s, seed in ((0.0, 1), (0.65, 2), (shift, 3)))
    found = recovered_share(with_windows(plain, cut, uncut), with_windows(plain, treated, uncut))
    expected = jackknife(uncut, cut, treated)
    assert found[0] == pytest.approx(expected[0], abs=1e-12)
    assert found[1] == pytest.approx(expected[1], rel=0.08)  # both are right to first order only
    unpaired = float(np.hypot(treated.std(ddof=1), cut.std(ddof=1)) / 4 / 0.65)
    assert found[1] < unpaired, "what the text is like cancels out"


def test_a_cut_that_lost_nothing_has_nothing_to_win_back() -> None:
    plain = fixture_evaluation(fixture_model(30), Block(start=12, n=4))
    uncut, better = windows_nll(0.0, seed=1), windows_nll(-0.1, seed=2)
    share, error = recovered_share(with_windows(plain, better, uncut), with_windows(plain, better, uncut))
    assert math.isnan(share)
    assert math.isnan(error)


def test_without_the_loss_of_each_window_the_share_has_no_error() -> None:
    plain = fixture_evaluation(fixture_model(30), Block(start=12, n=4))
    treated = replace(plain, score=replace(plain.score, nll=3.905))
    assert plain.base is not None
    share, error = recovered_share(plain, treated)
    assert share == pytest.approx(1 - (3.905 - plain.base.nll) / (plain.score.nll - plain.base.nll))
    assert math.isnan(error)
    assert math.isnan(paired_stderr(plain.score.window_nll, treated.score.window_nll))


def test_what_is_no_better_than_what_it_began_from_is_told_with_its_paired_interval() -> None:
    ledger = fixture_ledger()
    plain, base = ledger.steps[1].evaluation, ledger.steps[0].evaluation.score.window_nll
    cut, repaired, healed = ledger.steps[1:]
    assert verdicts(ledger) == ()
    assert gain(ledger, healed)[0] is repaired, "a healing is judged by what the repair had won already"

    def judged(change: float, noise: float) -> str:
        nll = np.array(repaired.evaluation.score.window_nll) + change + noise * np.tile([1.0, -1.0], len(base) // 2)
        found = add_step(ledger, "healed", with_windows(plain, nll, np.array(base)), [REPAIR, HEAL])
        return not_better(found, found.steps[-1])

    assert judged(-0.1, 0.01) == ""
    error = 0.1 / math.sqrt(15)  # of sixteen windows that differ by 0.1 either way
    assert judged(-2.1 * error, 0.1) == ""
    assert "is no better than what it began from: NLL -0.049 ± 0.026 nats against repaired (seam refit)" in judged(
        -1.9 * error, 0.1
    )
    assert "is worse than what it began from: NLL +0.1000" in judged(0.1, 0.001)
    kept = replace(plain, score=replace(plain.score, window_nll=()))
    unknown = add_step(ledger, "repaired", kept, [replace(REPAIR, method="scale")])
    assert "without a paired error" in verdicts(unknown)[0]
    assert not_better(ledger, cut) == ""


def test_every_evaluation_keeps_the_loss_of_each_window_of_both_models() -> None:
    handle, windows = shared_handle("llama"), window_set()
    found = evaluate(prune(handle, PrunePlan(num_layers=6, removed=(2, 3))), windows, base=handle)
    assert found.base is not None
    assert len(found.score.window_nll) == len(found.base.window_nll) == 4
    assert np.mean(found.score.window_nll) == pytest.approx(found.score.nll, abs=1e-12)
    error = paired_stderr(found.score.window_nll, found.base.window_nll)
    assert found.score.nll - found.base.nll == pytest.approx(found.nll_increase, abs=1e-12)
    assert error == pytest.approx(found.nll_increase_stderr, abs=1e-12)


def test_steps_stand_in_order_and_one_of_the_same_methods_takes_the_others_place() -> None:
    ledger = fixture_ledger()
    assert [s.label for s in ledger.steps] == [
        "uncut", "cut", "repaired (seam refit)", "healed (seam refit, then lora)"
    ]  # fmt: skip
    repaired = ledger.step("repaired")
    assert repaired is not None
    assert repaired.recovered == pytest.approx(0.38, abs=0.05)
    fold = replace(REPAIR, method="linear_fold")
    again = add_step(ledger, "repaired", repaired.evaluation, [fold])
    again = add_step(again, "repaired", repaired.evaluation, [replace(REPAIR, seconds=3.0)])
    assert [s.methods for s in again.steps if s.name == "repaired"] == [("linear_fold",), ("seam_refit",)]
    assert again.steps[-1].name == "healed"
    assert again.steps[-1].seconds == 671.0
    assert again.best == ledger.steps[-1]
    assert ledger.lost[0] == pytest.approx(0.65, abs=0.02)
    thrice = add_step(ledger, "repaired", repaired.evaluation, [REPAIR, REPAIR, REPAIR])
    assert thrice.treated(("seam_refit",) * 3).label == "repaired (seam refit × 3)"


def test_steps_of_other_windows_or_of_another_cut_are_refused() -> None:
    ledger = fixture_ledger()
    right = ledger.steps[-1].evaluation
    with pytest.raises(ShortvizError, match=r"lacks layers \[3\], the ledger is of the cut \[12, 13, 14, 15\]"):
        add_step(ledger, "healed", replace(right, removed=(3,)), [HEAL])
    with pytest.raises(ShortvizError, match="score both on the same windows"):
        add_step(ledger, "healed", replace(right, text=replace(right.text, fingerprint="other")), [HEAL])
    with pytest.raises(ShortvizError, match="measured against the uncut one"):
        start_ledger(replace(right, base=None))


def test_a_run_keeps_its_ledgers_and_merges_new_steps_into_them(tmp_path) -> None:
    short = fixture_ledger(healed=False)
    run = with_ledger(with_ledger(fixture_run(30), fixture_ledger()), short)
    assert [s.name for s in run.ledgers[0].steps] == ["uncut", "cut", "repaired", "healed"]
    save_run(run, tmp_path)
    assert load_run(tmp_path).ledgers == run.ledgers
    assert len(with_ledger(run, replace(short, removed=(3,))).ledgers) == 2
    asked = merged(run.ledgers[0], replace(short, prompt="Another prompt"))
    assert (asked.prompt, asked.steps[-1].name, asked.steps[-1].continuation) == ("Another prompt", "healed", "")
    other_loss = with_windows(short.steps[1].evaluation, windows_nll(0.7, seed=9), windows_nll(0.0, seed=1))
    assert [s.name for s in merged(run.ledgers[0], start_ledger(other_loss)).steps] == ["uncut", "cut"]


def test_the_ledger_of_run_json_has_a_stable_shape_without_nan() -> None:
    plain = fixture_evaluation(fixture_model(30), Block(start=12, n=4))  # it did not keep its windows
    one_window = add_step(start_ledger(plain), "repaired", plain, [replace(REPAIR, settings={"a": math.nan})])
    found = json.loads(to_json(with_ledger(fixture_run(30), one_window)))
    (ledger,) = found["ledgers"]
    assert list(ledger) == ["removed", "text", "steps", "prompt"]
    step = ledger["steps"][2]
    assert list(step) == [
        *("name", "evaluation", "treatments", "recovered", "recovered_stderr", "task", "continuation", "command"),
    ]
    assert list(step["treatments"][0]) == ["kind", "method", "settings", "text", "seconds", "note"]
    assert (step["recovered_stderr"], step["treatments"][0]["settings"]) == (None, {"a": None})
    assert json.loads(to_json(fixture_run(30)))["ledgers"] == []


def test_show_prints_the_ledger_with_errors_and_the_text_behind_it(shortviz, tmp_path) -> None:
    save_run(with_ledger(fixture_run(30), fixture_ledger()), tmp_path)
    code, out, _ = shortviz("show", str(tmp_path))
    assert code == 0
    assert "Ledger of the cut of layers 12-15 (4 layers)" in out
    assert "Over 8,176 scored tokens in 16 windows of 256, the first of the text; built-in python-reference" in out
    assert "healed (seam refit, then lora): Stopped early; the best step is kept." in out
    line = next(line for line in out.splitlines() if line.startswith("repaired (seam refit) "))
    assert "41 s" in line
    assert "39.3 ± 1.2 %" in line
    assert "Continuations of 'The capital of France is':" in out
    code, out, _ = shortviz("show", str(tmp_path), "--json")
    assert [s["name"] for s in json.loads(out)["ledgers"][0]["steps"]] == ["uncut", "cut", "repaired", "healed"]
    assert "accuracy" not in ledger_text(fixture_ledger())


def test_a_run_whose_ledger_names_a_repair_that_is_gone_still_opens_and_repeats_the_cut_alone(tmp_path) -> None:
    gone = replace(REPAIR, method="linear_replacement")
    short = fixture_ledger(healed=False)
    uncut, cut, repaired = short.steps
    old = replace(short, steps=(uncut, cut, replace(repaired, treatments=(gone,))))
    save_run(with_ledger(fixture_run(30), old), tmp_path)
    (opened,) = load_run(tmp_path).ledgers
    assert opened == old
    assert "repaired (linear replacement)" in ledger_text(opened)
    plan = PrunePlan(num_layers=30, removed=old.removed)
    recipe = recipe_of("demo", plan, opened.steps[2].treatments, opened.steps[2].command, folder="out")
    assert not recipe.whole
    assert "linear_replacement" not in recipe.command
