"""The charts of a ledger and of a training say in words and in marks what the records hold."""

import math
from dataclasses import replace

import pytest

from shortviz.figures.ledger import healing_alt, healing_figure, recovery_alt, recovery_figure
from shortviz.records.heal import HealHistory, HealPoint
from shortviz.records.ledger import add_step
from tests.support.ledgers import REPAIR, fixture_ledger, windows_nll, with_windows

HISTORY = HealHistory(
    points=(
        HealPoint(step=0, loss=None, heldout_nll=4.0, heldout_stderr=0.1),
        HealPoint(step=1, loss=3.9),
        HealPoint(step=2, loss=3.8, heldout_nll=3.7, heldout_stderr=0.1),
        HealPoint(step=3, loss=3.7, heldout_nll=3.75, heldout_stderr=math.nan),
    ),
    steps=10,
    best_step=2,
    best_nll=3.7,
    start_nll=4.0,
)


def test_each_bar_is_what_is_left_and_what_was_won_back_with_the_paired_error() -> None:
    ledger = fixture_ledger()
    left, won = recovery_figure(ledger).data
    assert [name.replace("<br>", " ") for name in left.y] == [step.label for step in ledger.steps[1:]]
    assert list(left.x) == [step.evaluation.nll_increase for step in ledger.steps[1:]]
    assert list(left.error_x.array) == [step.evaluation.nll_increase_stderr for step in ledger.steps[1:]]
    for value, gained, step in zip(left.x, won.x, ledger.steps[1:], strict=True):
        assert value + gained == pytest.approx(ledger.lost[0]), "together they are what the cut lost"
        assert gained / ledger.lost[0] == pytest.approx(step.recovered or 0.0)


def test_a_treatment_that_made_it_worse_shows_nothing_won_back_and_fits_on_the_axis() -> None:
    ledger = fixture_ledger(healed=False)
    worse = with_windows(ledger.steps[1].evaluation, windows_nll(0.9, seed=5), windows_nll(0.0, seed=1))
    figure = recovery_figure(add_step(ledger, "repaired", worse, [replace(REPAIR, method="scale")]))
    assert list(figure.data[1].x)[-1] == 0.0
    assert figure.layout.xaxis.range[1] > max(figure.data[0].x)
    assert "-38.4 ± 1.2 %" in [a.text for a in figure.layout.annotations], "a share below 0"


def test_the_alt_text_states_the_finding() -> None:
    assert recovery_alt(fixture_ledger()) == (
        "Cutting layers 12-15 costs 0.6472 ± 0.0039 nats a token over 16 windows; repaired (seam refit) wins back "
        "39.3 ± 1.2 %; healed (seam refit, then lora) wins back 69.2 ± 1.1 %."
    )
    cut = fixture_ledger(healed=False)
    assert recovery_alt(replace(cut, steps=cut.steps[:2])).endswith("16 windows; nothing was repaired yet.")
    assert not recovery_figure(replace(cut, steps=cut.steps[:2])).layout.showlegend


def test_the_curve_marks_the_best_step_and_keeps_its_axis_while_it_grows() -> None:
    held, trained, best = healing_figure(HISTORY).data
    assert (list(held.x), list(held.y)) == ([0, 2, 3], [4.0, 3.7, 3.75])
    assert list(held.error_y.array) == [0.1, 0.1, 0.0]
    assert list(trained.x) == [1, 2, 3]
    assert (list(best.x), list(best.y)) == ([2], [3.7])
    shorter = replace(HISTORY, points=HISTORY.points[:2])
    assert healing_figure(shorter).layout.xaxis.range == healing_figure(HISTORY).layout.xaxis.range
    assert "fell by 0.3000 from 4.0000; the best, 3.7000 nats, is at step 2" in healing_alt(HISTORY)
    nothing = HealHistory(points=(HealPoint(step=0, loss=None),), steps=10)
    assert healing_alt(nothing) == "0 of 10 steps are made; held-out loss was not measured yet."
    assert len(healing_figure(nothing, dark=True).data) == 2


def test_words_on_the_charts_are_light_on_dark() -> None:
    for figure in (recovery_figure(fixture_ledger(), dark=True), healing_figure(HISTORY, dark=True)):
        assert figure.layout.font.color == "#fafafa"
        assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"
