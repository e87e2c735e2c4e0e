"""Whatever scores a text scores the same windows: one cut, one number."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from shortviz.progress import Watch
from shortviz.records.measured import from_map
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, Removal
from shortviz.records.run import Run
from shortviz.records.text import Order, TextSpec, WindowSpec
from shortviz.service.execute import execute, new_service
from shortviz.service.inspect import Inspection
from shortviz.service.place import Place
from shortviz.service.requests import (
    BlocksRequest,
    CurveRequest,
    EvaluateRequest,
    MapRequest,
    RepairRequest,
    SearchRequest,
    ShrinkRequest,
)
from shortviz.service.service import Service

TEXT = TextSpec(kind="builtin", value="passages")
FIT = TextSpec(kind="builtin", value="python-reference", max_length=64)
BLOCK = Block(start=2, n=2)


@pytest.fixture(scope="module")
def service() -> Service:
    return new_service()


def evaluated(service: Service, ref: ModelRef, windows: WindowSpec, stream: bool = False) -> Inspection:
    removal = Removal(block=BLOCK)
    found = execute(
        EvaluateRequest(model=ref, removal=removal, text=TEXT, windows=windows, stream=stream), service=service
    )
    assert found.evaluation.base is not None
    return found


@pytest.mark.parametrize("order", ["spread", "first"])
def test_every_path_scores_the_same_windows(service: Service, checkpoint: str, order: Order) -> None:
    ref, windows = ModelRef(id=checkpoint), WindowSpec(window=32, windows=4, order=order)
    whole = evaluated(service, ref, windows).evaluation
    assert whole is not None
    assert (whole.text.order, whole.score.windows) == (order, 4)
    prints, numbers = [], []
    streamed = evaluated(service, ref, windows, stream=True).evaluation
    assert streamed is not None
    (block,) = execute(BlocksRequest(model=ref, blocks=(BLOCK,), text=TEXT, windows=windows), service=service)
    for one in (streamed, block):
        prints.append(one.text.fingerprint)
        numbers.append(one.nll_increase)
    run: Run = execute(MapRequest(model=ref, text=TEXT, windows=windows), service=service)
    assert run.losses is not None
    cell = from_map(run.losses, run.model, BLOCK)
    assert cell is not None
    assert cell.nll_increase_stderr == pytest.approx(whole.nll_increase_stderr, abs=1e-6)
    prints.append(run.losses.text.fingerprint)
    numbers.append(cell.nll_increase)
    search = execute(SearchRequest(model=ref, text=TEXT, windows=windows, max_n=2), service=service)
    prints.append(search.text.fingerprint)
    place = Place(None)
    curve: Run = execute(CurveRequest(model=ref, text=TEXT, windows=windows, greedy=1), service=service, place=place)
    assert curve.greedy is not None
    prints += [curve.greedy.text.fingerprint]
    for request in (
        RepairRequest(
            model=ref, removal=Removal(block=BLOCK), text=FIT, evaluation=TEXT, windows=windows, fit_tokens=1024
        ),
        ShrinkRequest(model=ref, to_layers=5, text=FIT, evaluation=TEXT, windows=windows, fit_tokens=1024),
    ):
        ledger = execute(request, service=new_service(), place=Place(None)).ledger
        prints.append(ledger.text.fingerprint)
        if ledger.removed == BLOCK.layers:
            numbers.append(ledger.steps[1].evaluation.nll_increase)
    assert set(prints) == {whole.text.fingerprint}
    assert numbers == pytest.approx([whole.nll_increase] * 4, abs=1e-6)


def test_more_windows_refine_what_fewer_said(service: Service, checkpoint: str) -> None:
    ref, many = ModelRef(id=checkpoint), WindowSpec(window=32, windows=5)
    few = evaluated(service, ref, replace(many, windows=3)).evaluation
    whole = evaluated(service, ref, many).evaluation
    assert few is not None
    assert whole is not None
    assert whole.score.window_nll[:3] == pytest.approx(few.score.window_nll, abs=1e-9)

    stop = threading.Event()
    watch = Watch(
        lambda progress: stop.set() if progress.detail == "window 3 of 5" and progress.snapshot is not None else None,
        stop,
    )
    stopped: Run = execute(MapRequest(model=ref, text=TEXT, windows=many), watch, service=new_service())
    assert stopped.losses is not None
    cell = from_map(stopped.losses, stopped.model, BLOCK)
    assert cell is not None
    assert cell.score.windows == 3
    assert cell.nll_increase == pytest.approx(few.nll_increase, abs=1e-6)
    assert cell.nll_increase_stderr == pytest.approx(few.nll_increase_stderr, abs=1e-6)


def test_a_run_of_a_text_s_first_windows_is_gone_on_with_on_those(
    service: Service, checkpoint: str, tmp_path: Path
) -> None:
    ref, place = ModelRef(id=checkpoint), Place(tmp_path / "run")
    old = WindowSpec(order="first")
    execute(MapRequest(model=ref, windows=old), service=service, place=place)
    found: Run = execute(CurveRequest(model=ref, greedy=1), service=service, place=place)
    assert found.losses is not None
    assert found.greedy is not None
    assert found.greedy.text.fingerprint == found.losses.text.fingerprint
    assert found.losses.text.windows == old
