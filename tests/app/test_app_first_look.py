"""A clicked block's first number: soon, from little text, and said to be so."""

import threading
import time

import pytest

from shortviz.progress import Progress, Watch
from shortviz.records.plan import Block, Removal
from shortviz.service import inspect, measure
from shortviz.service.execute import execute
from shortviz.service.inspect import Inspection
from shortviz.service.requests import EvaluateRequest
from shortviz.service.service import Service
from shortviz.ui.session import service
from shortviz.ui.session import state as s
from tests.support.app import App

BLOCK = Block(start=1, n=2)


@pytest.fixture
def steps(measured: App, tools: Service) -> list[Inspection]:
    """What the inspection of a block knew at each of its steps."""
    ref = s.ref(measured.state)
    assert ref is not None
    text, removal = s.evaluation(measured.state), Removal(block=BLOCK)
    request = EvaluateRequest(model=ref, removal=removal, text=text, windows=measure.APP_WINDOWS)
    seen: list[Inspection] = []

    def note(progress: Progress) -> None:
        assert progress.snapshot is not None
        seen.append(progress.snapshot())

    execute(request, Watch(on_progress=note, stop=threading.Event()), service=tools)
    return seen


def test_the_first_number_rests_on_the_beginning_of_the_first_window(steps: list[Inspection]) -> None:
    tokens = [step.evaluation.score.tokens for step in steps if step.evaluation is not None]
    assert tokens[0] == inspect.FIRST_LOOK_TOKENS - 1
    assert tokens[1] == measure.APP_WINDOWS.window - 1
    assert tokens == sorted(tokens)
    first, last = steps[0].evaluation, steps[-1].evaluation
    assert first is not None
    assert last is not None
    assert not first.complete
    assert last.complete
    assert last.score.windows > 1


def test_one_window_says_that_it_has_no_error(measured: App, tools: Service, steps: list[Inspection]) -> None:
    ref = s.ref(measured.state)
    assert ref is not None
    first = steps[0].evaluation
    assert first is not None
    tools.measured.put(measure.measured_key(ref, s.evaluation(measured.state), BLOCK.layers), first)
    measured.state[s.CHOSEN], measured.state[s.INPUTS] = BLOCK, 99
    measured.run()
    assert "127 tokens scored" in measured.words
    assert "1 window of 128 (no error from one) · stopped early" in measured.words
    assert measured.at.metric
    assert not any("±" in metric.value or "nan" in metric.value for metric in measured.at.metric)


def test_a_loaded_model_is_ready_for_the_first_click(loaded: App, tools: Service) -> None:
    for job in tools.jobs.jobs():
        tools.jobs.wait(job.id, 60)
    ref = s.ref(loaded.state)
    assert ref is not None
    kept = tools.base_scores.get(ref)
    assert kept is not None
    assert kept.windows == 1


def test_the_engine_is_imported_once_and_not_before_the_page_is_quiet() -> None:
    begun: list[float] = []
    started, done = time.monotonic(), threading.Event()

    def work() -> None:
        begun.append(time.monotonic() - started)
        done.set()

    warmth = service.Warmth(work, quiet_seconds=0.2)
    for _ in range(3):
        warmth.page_was_drawn()
    assert done.wait(30)
    warmth.page_was_drawn()
    assert len(begun) == 1
    assert begun[0] >= 0.2


def test_a_script_without_a_server_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(service.Warmth, "page_was_drawn", lambda _self: begun.append(1))
    service.page_was_drawn()
    assert begun == []
