"""Treated models beside their run: a kill while one is written leaves the one before."""

from dataclasses import replace
from pathlib import Path

import pytest

from shortviz import own_weights
from shortviz.ledger import LedgerStep, Treatment
from shortviz.new_weights import put_weights
from shortviz.pruning import prune
from shortviz.records import Block, PrunePlan
from shortviz.ui.kept_models import bring_back, is_kept, keep, place
from shortviz.ui.resources import Bench
from shortviz.ui.shelves import RunShelf
from tests.families import NUM_LAYERS, shared_handle
from tests.records_fixture import fixture_evaluation, fixture_model

METHODS = ("seam_refit",)


def repaired(weight: str, seconds: float):
    cut = prune(shared_handle("llama"), PrunePlan(num_layers=NUM_LAYERS, removed=(2,)))
    put_weights(cut.model, {weight: seconds * cut.model.get_parameter(weight)})
    return replace(cut, treatments=(Treatment(kind="repair", method="seam_refit", seconds=seconds),))


def step(model) -> LedgerStep:
    evaluation = fixture_evaluation(fixture_model(NUM_LAYERS), Block(start=2, n=1))
    return LedgerStep(name="repaired", evaluation=evaluation, treatments=model.treatments)


def test_a_kill_while_a_model_is_written_leaves_the_one_before(tmp_path: Path, monkeypatch) -> None:
    base, weight = shared_handle("llama"), "model.layers.1.mlp.gate_proj.weight"
    bench, first, second = Bench(runs=RunShelf(tmp_path)), repaired(weight, 2.0), repaired(weight, 3.0)
    assert keep(bench, "run", base, first, None) == ""
    whole = own_weights.save_treated

    def killed(*arguments) -> None:
        whole(*arguments)
        raise SystemExit

    monkeypatch.setattr(own_weights, "save_treated", killed)
    with pytest.raises(SystemExit):
        keep(bench, "run", base, second, None)
    found = bring_back(bench, "run", base, (2,), step(first))
    assert (found.model.get_parameter(weight) == first.model.get_parameter(weight)).all()

    monkeypatch.undo()
    assert keep(bench, "run", base, second, None) == ""
    assert is_kept(bench, "run", (2,), METHODS)
    found = bring_back(bench, "run", base, (2,), step(second))
    assert (found.model.get_parameter(weight) == second.model.get_parameter(weight)).all()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [place(bench, "run", (2,), METHODS).name]
