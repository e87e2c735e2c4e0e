"""Treated models beside their run: a kill while one is written leaves the one before."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shortviz.export.folder import folder_bytes
from shortviz.model import delta
from shortviz.model.prune import prune, put_weights
from shortviz.records.ledger import LedgerStep, Treatment
from shortviz.records.plan import Block, PrunePlan
from shortviz.service.execute import new_service
from shortviz.service.kept import Cache, bring_back, is_kept, keep, place, put_in_memory
from shortviz.service.service import RunStore
from shortviz.settings import settings
from tests.support.families import NUM_LAYERS, shared_handle
from tests.support.records import fixture_evaluation, fixture_model

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
    bench, first, second = new_service(runs=RunStore(tmp_path)), repaired(weight, 2.0), repaired(weight, 3.0)
    assert keep(bench, "run", base, first, None) == ""
    whole = delta.save_treated

    def killed(*arguments) -> None:
        whole(*arguments)
        raise SystemExit

    monkeypatch.setattr(delta, "save_treated", killed)
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


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("SHORTVIZ_HOSTED", "1")
    settings.cache_clear()
    yield monkeypatch
    settings.cache_clear()


def test_where_the_app_is_hosted_models_kept_longest_ago_make_room_and_one_too_large_is_refused(
    tmp_path: Path, hosted: pytest.MonkeyPatch
) -> None:
    base, weight = shared_handle("llama"), "model.layers.1.mlp.gate_proj.weight"
    bench, model, ref = new_service(runs=RunStore(tmp_path)), repaired(weight, 2.0), shared_handle("llama").ref
    assert keep(bench, "one", base, model, None) == ""
    size = folder_bytes(place(bench, "one", (2,), METHODS))
    assert 0 < size < 2**20
    padding = place(bench, "one", (2,), METHODS) / "padding"
    padding.write_bytes(b"0" * (2**20 - size))
    hosted.setenv("SHORTVIZ_MAX_KEPT_MB", "1")
    settings.cache_clear()

    assert keep(bench, "two", base, model, None) == ""
    assert not is_kept(bench, "one", (2,), METHODS), "it was kept longest ago"
    assert is_kept(bench, "two", (2,), METHODS)

    large = repaired("model.embed_tokens.weight", 2.0)
    hosted.setattr("shortviz.service.policy.kept_bytes", lambda _: 1.0)
    told = keep(bench, "three", base, large, None)
    assert "could not be kept beside its run (it takes" in told
    assert "keeps 1 MB" in told
    assert not is_kept(bench, "three", (2,), METHODS)
    assert is_kept(bench, "two", (2,), METHODS), "what does not fit drives nothing out"

    assert put_in_memory(bench, ref, (2,), base, large) == ""
    bench.treated = Cache(3, 2 * 6144 + 1000)
    assert put_in_memory(bench, ref, (2,), base, model) == ""
    assert "of this model are its own, and this installation keeps" in put_in_memory(bench, ref, (2,), base, large)
    assert bench.treated.get((ref, (2,), METHODS)) is None


def test_a_shelf_lets_go_of_what_was_used_longest_ago_until_all_fits() -> None:
    shelf: Cache[str] = Cache(9, 100)
    for name, num_bytes in (("a", 40), ("b", 40), ("c", 10)):
        shelf.put(name, name, num_bytes)
    assert shelf.get("a") == "a"
    shelf.put("d", "d", 50)
    assert [name for name in "abcd" if shelf.get(name)] == ["a", "c", "d"]
    assert shelf.put("e", "e", 101) == "e"
    assert [name for name in "abcde" if shelf.get(name)] == ["a", "c", "d"]
