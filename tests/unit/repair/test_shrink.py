"""shrink: every step removes one layer, never raises the loss by its repair, and a stop keeps what is done."""

import threading

import numpy as np
import pytest

from shortviz.errors import NumericsError, PlanError, Stopped
from shortviz.measure.losses import evaluate
from shortviz.measure.search import single_layer_losses
from shortviz.model.handle import ModelHandle
from shortviz.progress import Progress, Watch
from shortviz.records.text import TextInfo, TokenSet, WindowSet
from shortviz.repair.shrink import Shrunk, shrink
from tests.support.families import shared_handle
from tests.support.repairs import written_by


@pytest.fixture(scope="module")
def llama() -> ModelHandle:
    return shared_handle("llama")


@pytest.fixture(scope="module")
def text(llama: ModelHandle) -> TokenSet:
    return written_by(llama, rows=16)


@pytest.fixture(scope="module")
def windows(llama: ModelHandle) -> WindowSet:
    rows = written_by(llama, rows=9, seed=7).rows[::3]
    return WindowSet(tokens=np.array(rows), info=TextInfo(source="windows", rows=3, tokens=72, fingerprint="w"))


def test_it_removes_one_layer_at_a_time_and_repairs_each_seam(
    llama: ModelHandle, windows: WindowSet, text: TokenSet
) -> None:
    shrunk = shrink(llama, windows, text, 3)

    assert shrunk.complete
    assert shrunk.handle.info.num_layers == 3
    assert [len(step.removed) for step in shrunk.steps] == [1, 2, 3]
    assert shrunk.handle.plan is not None
    assert shrunk.handle.plan.removed == shrunk.steps[-1].removed
    assert shrunk.handle.treatments == tuple(s.treatment for s in shrunk.steps if s.treatment is not None)
    assert shrunk.steps[-1].nll == pytest.approx(evaluate(shrunk.handle, windows).score.nll, abs=1e-6)
    assert shrunk.base_nll == pytest.approx(evaluate(llama, windows).score.nll, abs=1e-6)
    for step in shrunk.steps:
        assert step.treatment is not None
        assert step.nll < step.nll_cut
        assert "Loss on held-out rows" in step.note


def test_a_stop_keeps_the_steps_that_are_done(llama: ModelHandle, windows: WindowSet, text: TokenSet) -> None:
    stop, snapshots = threading.Event(), []

    def after_one(progress: Progress) -> None:
        assert progress.snapshot is not None
        if progress.detail.startswith("removed layer"):
            snapshots.append(progress.snapshot())
            stop.set()

    shrunk = shrink(llama, windows, text, 2, watch=Watch(after_one, stop))

    assert not shrunk.complete
    assert len(shrunk.steps) == 1
    assert isinstance(snapshots[0], Shrunk)
    assert shrunk.handle.info.num_layers == 5


def test_a_stop_before_the_first_step_and_a_wrong_number_are_told(
    llama: ModelHandle, windows: WindowSet, text: TokenSet
) -> None:
    stop = threading.Event()
    stop.set()

    with pytest.raises(Stopped, match="before the first layer was removed"):
        shrink(llama, windows, text, 3, watch=Watch(stop=stop))
    with pytest.raises(PlanError, match="The model has 6 layers and is to have 0; give 1 to 5"):
        shrink(llama, windows, text, 0)


def test_a_step_whose_seam_a_method_cannot_repair_does_not_lose_the_others(
    llama: ModelHandle, windows: WindowSet, text: TokenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = [np.array([[0.0] * (count - 1) + [-1.0]]) for count in (6, 5)]
    monkeypatch.setattr("shortviz.repair.shrink.single_layer_losses", lambda *_: (None, last.pop(0)))

    shrunk = shrink(llama, windows, text, 4, method="scale")

    assert shrunk.steps[-1].removed == (4, 5)
    assert "choose another repair" in shrunk.steps[-1].note
    assert shrunk.handle.treatments == ()


def test_a_family_that_no_repair_knows_is_shrunk_without_and_every_step_says_why(text: TokenSet) -> None:
    experts = shared_handle("mixtral")
    windows = WindowSet(
        tokens=np.array(written_by(experts, rows=3, seed=7).rows[::3]),
        info=TextInfo(source="windows", rows=1, tokens=24, fingerprint="w"),
    )

    shrunk = shrink(experts, windows, written_by(experts, rows=16), 4)

    assert shrunk.complete
    assert [step.treatment for step in shrunk.steps] == [None, None]
    assert all("Not repaired: " in step.note for step in shrunk.steps)
    assert shrunk.handle.treatments == ()


def test_a_fault_after_the_first_step_keeps_it_and_is_told(
    llama: ModelHandle, windows: WindowSet, text: TokenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, calls = single_layer_losses, []

    def fails_later(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise NumericsError("Layer 3 gives NaN.")
        return own(*arguments)

    monkeypatch.setattr("shortviz.repair.shrink.single_layer_losses", fails_later)
    shrunk = shrink(llama, windows, text, 3)

    assert (len(shrunk.steps), shrunk.complete, shrunk.note) == (1, False, "Layer 3 gives NaN.")


def test_a_repair_that_there_is_not_is_refused_before_any_work(
    llama: ModelHandle, windows: WindowSet, text: TokenSet
) -> None:
    refused = "no repair called 'linear_replacement'; choose seam_refit, seam_trained, linear_fold, scale"
    with pytest.raises(PlanError, match=refused):
        shrink(llama, windows, text, 3, method="linear_replacement")
