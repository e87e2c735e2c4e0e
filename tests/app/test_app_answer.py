"""The answer on top of the map: the slider, its sentence, and the cell that it moves."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from shortviz.analysis.advice import advise
from shortviz.records.advice import Budget
from shortviz.records.formatting import factor, times
from shortviz.records.plan import Block
from shortviz.runs.run import example_run
from shortviz.service.service import EXAMPLE, Service
from shortviz.ui.parts.notes import plain as escaped
from shortviz.ui.session import state as s
from tests.support.app import App

Start = Callable[..., App]


def test_the_first_chosen_cell_is_the_one_that_the_sentence_names(app: Start) -> None:
    page = app()
    plan = advise(example_run(), Budget(layers=4), bare=True).plan
    assert s.cut(page.state) == plan.removed
    assert f"layers {plan.removed[0]}-{plan.removed[-1]}" in page.words
    assert times(plan.increase, plan.stderr) in page.words
    assert f"Measured on {plan.tokens:,} tokens" in page.words
    assert re.search(r"Repairing the cut of layers 12-15 won back [\d.]+( to [\d.]+)? % of what was lost\.", page.words)
    losses = example_run().losses
    assert losses is not None
    alone = losses.increase.row(1)
    most = [int(layer) for layer in alone.argsort()[-3:]]
    assert sorted(most) == [0, 1, 29]
    assert most[0] == 29
    least = factor(*losses.increase.at(Block(start=29, n=1)))
    assert f"Needed most, by the map: layers 0-1, 29, each alone perplexity {least} or more." in page.words
    assert not any(button.key == "take_advice" for button in page.at.button)


@pytest.mark.parametrize("first_page", ["map", "heal", "export"])
def test_every_page_that_is_opened_by_its_address_begins_on_the_cut_of_the_answer(app: Start, first_page: str) -> None:
    plan = advise(example_run(), Budget(layers=4), bare=True).plan
    assert s.cut(app(first_page=first_page).state) == plan.removed


def test_moving_the_slider_moves_the_chosen_cell_and_the_sentence(app: Start) -> None:
    page = app(start="20", n="1")
    assert s.cut(page.state) == (20,), "a link's block stays until a person moves"
    page.click("take_advice")
    assert len(s.cut(page.state)) == 4
    page.at.slider(key=f"{s.LIMIT}_layers").set_value(6)
    page.run()
    assert len(s.cut(page.state)) >= 6
    assert f"Removes layers {s.cut(page.state)[0]}-{s.cut(page.state)[-1]}" in page.words


@pytest.mark.parametrize("percent", [5, 20])
def test_a_percentage_is_of_the_weights(app: Start, percent: int) -> None:
    page = app()
    page.at.selectbox(key=s.BUDGET).set_value("bytes")
    page.run()
    page.at.slider(key=f"{s.LIMIT}_bytes").set_value(percent)
    page.run()
    model = example_run().model
    assert model.sizes(s.cut(page.state))[1] >= percent / 100 * model.bytes


def test_a_limit_on_the_loss_that_nothing_keeps_is_told_and_moves_nothing(app: Start) -> None:
    page = app(start="20", n="1")
    page.at.selectbox(key=s.BUDGET).set_value("max_increase")
    page.run()
    page.at.select_slider(key=f"{s.LIMIT}_max_increase").set_value(1.05)
    page.run()
    assert "No measured cut raises the NLL by at most" in page.words
    page.at.select_slider(key=f"{s.LIMIT}_max_increase").set_value(2.0)
    page.run()
    assert len(s.cut(page.state)) > 4


def test_the_heal_page_says_what_the_map_says_of_the_cut(app: Start) -> None:
    page = app()
    price = page.words.split("perplexity × ")[1].split(")")[0]
    assert f"**perplexity × {price})**, by the map" in page.page("heal").words


def test_a_cut_that_was_repaired_says_what_came_of_it(app: Start, tools: Service) -> None:
    run = example_run()
    assert run.losses is not None
    (ledger,) = run.ledgers
    kept = tuple(e for e in run.evaluations if e.removed == ledger.removed)
    tools.runs.put(EXAMPLE, replace(run, losses=None, evaluations=kept))
    page = app()
    assert s.cut(page.state) == ledger.removed
    found = advise(replace(run, losses=None, evaluations=kept), Budget(layers=4), bare=True)
    assert found.repaired is not None
    assert found.repaired.increase < found.plan.increase
    assert "Repaired: × " in page.words


def test_what_only_a_distance_speaks_for_is_called_predicted(app: Start, tools: Service) -> None:
    run = replace(example_run(), losses=None, evaluations=(), ledgers=())
    tools.runs.put(EXAMPLE, run)
    page = app()
    assert "predicted, not measured" in page.words
    assert escaped("nats") not in page.words.splitlines()[0]
