"""Two visitors of a hosted app who ask for the same work: it is done once, and each has a handle of their own on it."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shortviz.progress import Watch
from shortviz.records.model import ModelRef
from shortviz.records.text import TextSpec
from shortviz.runs.run import example_run
from shortviz.service.execute import new_service
from shortviz.service.queue import JobState
from shortviz.service.requests import MeasureRequest
from shortviz.service.service import Asked, RunStore, Service
from shortviz.settings import settings

PATIENCE = 30
ASKED = Asked(
    request=MeasureRequest(model=ModelRef(id="demo"), text=TextSpec(kind="paste", value="Words.")), run_key="a"
)


class Visitors:
    """A service and who asks it now."""

    def __init__(self, folder: Path) -> None:
        self.now = ""
        self.service: Service = new_service(runs=RunStore(folder), visitor=lambda: self.now)
        self.go_on = threading.Event()
        self.begun = threading.Event()

    def as_(self, name: str) -> Service:
        self.now = name
        return self.service

    def work(self, watch: Watch) -> str:
        """Go on until the test says so, or a stop does."""
        watch.tell("measure", done=1, total=4, unit="rows")
        self.begun.set()
        while not self.go_on.wait(0.01):
            if watch.stopped:
                return "as far as it came"
        return "whole"

    def ask(self, name: str) -> str:
        job_id = self.as_(name).run(ASKED, self.work)
        assert self.begun.wait(PATIENCE)
        return job_id

    def state(self, name: str, job_id: str) -> JobState:
        found = self.as_(name).state(job_id)
        assert found is not None
        return found

    def ended(self, job_id: str) -> JobState:
        found = self.service.jobs.wait(job_id, PATIENCE)
        assert found is not None
        return found


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    def be(**more: Any) -> None:
        for name, value in {"HOSTED": "1", "MIN_FREE_MB": "0", "RUNS_DIR": str(tmp_path), **more}.items():
            monkeypatch.setenv(f"SHORTVIZ_{name}", value)
        settings.cache_clear()

    be()
    yield be
    settings.cache_clear()


@pytest.fixture
def two(hosted: Callable[..., None], tmp_path: Path) -> Iterator[Visitors]:
    found = Visitors(tmp_path / "runs")
    yield found
    found.go_on.set()
    found.service.close()


def test_shared_work_goes_on_while_anybody_wants_it_and_ends_when_the_last_one_leaves(two: Visitors) -> None:
    job_id = two.ask("ann")
    assert two.ask("bob") == job_id, "the same work is done once"
    two.as_("ann").stop(job_id)
    mine = two.state("ann", job_id)
    assert (mine.state, mine.live, mine.stopping) == ("cancelled", False, True)
    assert two.as_("ann").running() == ()
    assert two.state("bob", job_id).state == "running"
    assert not two.state("bob", job_id).stopping
    two.as_("ann").stop(job_id)  # who has left has nothing to stop
    assert not two.state("bob", job_id).stopping
    two.as_("bob").stop(job_id)
    assert two.ended(job_id).state == "cancelled"
    assert two.state("ann", job_id).result == two.state("bob", job_id).result == "as far as it came"


def test_either_of_two_visitors_may_leave_and_the_other_gets_the_result(two: Visitors) -> None:
    job_id = two.ask("ann")
    two.ask("bob")
    two.as_("bob").stop(job_id)
    assert two.state("ann", job_id).live
    two.go_on.set()
    assert two.ended(job_id).state == "done"
    assert two.state("ann", job_id).result == "whole"


def test_who_left_comes_back_to_the_same_work_by_asking_again(two: Visitors) -> None:
    job_id = two.ask("ann")
    two.ask("bob")
    two.as_("ann").stop(job_id)
    assert two.ask("ann") == job_id
    assert two.state("ann", job_id).live
    two.as_("bob").stop(job_id)
    assert not two.state("ann", job_id).stopping


def test_who_reloads_finds_shared_work_and_who_left_or_never_asked_does_not(two: Visitors) -> None:
    job_id = two.ask("ann")
    two.ask("bob")
    for name in ("ann", "bob"):
        assert [job.id for job in two.as_(name).own_live()] == [job_id]
    two.as_("ann").stop(job_id)
    assert two.as_("ann").own_live() == ()
    stranger = two.as_("eve")
    assert (stranger.own_live(), stranger.state(job_id), stranger.context(job_id)) == ((), None, None)
    stranger.stop(job_id)
    assert not two.state("bob", job_id).stopping


def test_who_comes_upon_work_sees_it_and_neither_keeps_it_going_nor_ends_it(two: Visitors) -> None:
    from shortviz.records.plan import Block, Removal
    from shortviz.service.requests import EvaluateRequest

    text, block = TextSpec(kind="builtin", value="passages"), Block(start=0, n=1)
    request = EvaluateRequest(model=ModelRef(id="demo"), removal=Removal(block=block), text=text)
    job_id = two.as_("ann").run(Asked(request=request), two.work)
    assert two.begun.wait(PATIENCE)
    assert two.as_("bob").inspecting(ModelRef(id="demo"), block, text) == job_id
    two.as_("bob").stop(job_id)
    assert not two.state("bob", job_id).stopping
    two.as_("ann").stop(job_id)
    assert two.ended(job_id).state == "cancelled"


def test_a_job_that_was_joined_counts_and_one_that_was_left_does_not(
    two: Visitors, hosted: Callable[..., None]
) -> None:
    hosted(MAX_JOBS="1")
    job_id = two.ask("ann")
    two.ask("bob")
    other = replace(ASKED, run_key="b")

    def refused(name: str) -> str:
        return two.state(name, two.as_(name).run(other, two.work)).error

    assert "1 job waiting or running" in refused("ann")
    assert "1 job waiting or running" in refused("bob")
    two.as_("bob").stop(job_id)
    assert refused("bob") == ""


def test_a_visitors_own_runs_are_listed_first_and_others_see_no_run_of_their_text(two: Visitors) -> None:
    run = example_run("example")
    for key, source in (("a", "pasted text"), ("b", "built-in passages"), ("c", "pasted text")):
        two.service.runs.put(key, replace(run, text=replace(run.text, source=source)))
    two.ask("ann")  # whose result goes into run a
    ann, bob = ([*two.service.runs.listed(two.as_(name).own_runs())] for name in ("ann", "bob"))
    assert ann[:2] == ["a", "b"]
    assert bob[0] == "b"
    assert "c" not in {*ann, *bob}


def test_on_ones_own_machine_every_tab_stops_the_work_and_ones_own_comes_first(
    two: Visitors, hosted: Callable[..., None]
) -> None:
    hosted(HOSTED="0")
    first = two.ask("one tab")
    second = two.as_("another tab").run(replace(ASKED, run_key="b"), two.work)
    assert [job.id for job in two.service.running()] == [second, first]
    two.as_("another tab").stop(first)
    assert two.ended(first).state == "cancelled"
