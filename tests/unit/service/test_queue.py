"""Background jobs: order, cancel, progress, partial results and the exception boundary. Events instead of sleeps."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shortviz.errors import ModelError, ShortvizError, Stopped
from shortviz.progress import Progress, Watch
from shortviz.service.queue import JobRegistry

PATIENCE = 20.0


class HandClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """Work that says when it has begun and then waits to be let go."""

    def __init__(self, result: Any = None) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.result = result

    def __call__(self, watch: Watch) -> Any:
        self.begun.set()
        assert self.go.wait(PATIENCE)
        return self.result


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def registry(clock: HandClock) -> Iterator[JobRegistry]:
    made = JobRegistry(clock=clock)
    yield made
    made.close()


def progress(done: float, total: float = 100, stage: str = "measure", snapshot: Any = None) -> Progress:
    return Progress(stage=stage, done=done, total=total, unit="rows", snapshot=snapshot)


def test_a_job_runs_and_keeps_what_it_returned(registry: JobRegistry) -> None:
    job = registry.submit("load", "Load demo", lambda watch: 42)
    ended = registry.wait(job, PATIENCE)
    assert ended is not None
    assert (ended.state, ended.result, ended.record, ended.live) == ("done", 42, 42, False)
    assert (ended.kind, ended.title, ended.lane) == ("load", "Load demo", "long")
    assert ended.finished is not None
    assert ended.finished >= ended.created


def test_a_lane_runs_one_job_at_a_time_first_come_first_served(registry: JobRegistry) -> None:
    order: list[int] = []
    gate = Gate()
    first = registry.submit("measure", "first", gate)
    assert gate.begun.wait(PATIENCE)
    waiting = [registry.submit("measure", str(k), lambda _, k=k: order.append(k)) for k in range(3)]
    assert [registry.state(j).position for j in waiting] == [1, 2, 3]
    assert registry.state(first).position == 0
    assert order == []
    gate.go.set()
    assert registry.wait(waiting[-1], PATIENCE).state == "done"
    assert order == [0, 1, 2]


def test_the_inspect_lane_does_not_wait_for_the_long_one(registry: JobRegistry) -> None:
    gate = Gate()
    long = registry.submit("measure", "long", gate)
    assert gate.begun.wait(PATIENCE)
    short = registry.submit("evaluate", "short", lambda watch: "quick", lane="inspect")
    assert registry.wait(short, PATIENCE).result == "quick"
    assert registry.state(long).state == "running"
    gate.go.set()


def test_a_full_queue_refuses_in_words(clock: HandClock) -> None:
    registry = JobRegistry(queue_limit=2, clock=clock)
    gate = Gate()
    registry.submit("measure", "running", gate)
    assert gate.begun.wait(PATIENCE)
    registry.submit("measure", "a", lambda watch: None)
    registry.submit("measure", "b", lambda watch: None)
    with pytest.raises(ShortvizError) as refused:
        registry.submit("measure", "Measure demo", lambda watch: None)
    assert str(refused.value) == (
        "The job 'Measure demo' cannot start: 2 jobs are waiting already; wait for one to finish or cancel one."
    )
    assert len(registry.jobs()) == 3
    gate.go.set()
    registry.close()


def test_a_waiting_job_that_is_cancelled_never_runs(registry: JobRegistry) -> None:
    ran: list[str] = []
    gate = Gate()
    registry.submit("measure", "running", gate)
    assert gate.begun.wait(PATIENCE)
    dropped = registry.submit("measure", "dropped", lambda watch: ran.append("dropped"))
    kept = registry.submit("measure", "kept", lambda watch: ran.append("kept"))
    registry.cancel(dropped)
    assert registry.state(dropped).state == "cancelled"
    assert registry.state(kept).position == 1
    gate.go.set()
    registry.wait(kept, PATIENCE)
    assert ran == ["kept"]


def test_a_running_job_that_is_cancelled_keeps_the_record_it_returns(registry: JobRegistry) -> None:
    begun = threading.Event()

    def work(watch: Watch) -> str:
        begun.set()
        assert watch.stop.wait(PATIENCE)
        return "half a map"

    job = registry.submit("measure", "Measure", work)
    assert begun.wait(PATIENCE)
    registry.cancel(job)
    ended = registry.wait(job, PATIENCE)
    assert (ended.state, ended.result, ended.stopping, ended.error) == ("cancelled", "half a map", False, "")


def test_cancel_shows_at_once_while_the_work_comes_to_its_next_check(registry: JobRegistry) -> None:
    gate = Gate()
    job = registry.submit("measure", "Measure", gate)
    assert gate.begun.wait(PATIENCE)
    registry.cancel(job)
    assert (registry.state(job).state, registry.state(job).stopping) == ("running", True)
    gate.go.set()
    assert registry.wait(job, PATIENCE).state == "cancelled"


def test_stopped_keeps_the_last_partial_record(registry: JobRegistry) -> None:
    begun = threading.Event()

    def work(watch: Watch) -> None:
        watch.on_progress(progress(10, snapshot=lambda: "10 rows"))
        begun.set()
        assert watch.stop.wait(PATIENCE)
        raise Stopped("Stopped.")

    job = registry.submit("measure", "Measure", work)
    assert begun.wait(PATIENCE)
    registry.cancel(job)
    ended = registry.wait(job, PATIENCE)
    assert (ended.state, ended.partial, ended.record, ended.error) == ("cancelled", "10 rows", "10 rows", "")


def test_an_error_for_people_is_shown_as_it_is(registry: JobRegistry) -> None:
    def work(watch: Watch) -> None:
        raise ModelError("There is no model 'x'; check the name.")

    ended = registry.wait(registry.submit("load", "Load x", work), PATIENCE)
    assert ended.state == "failed"
    assert ended.error == "There is no model 'x'; check the name."
    assert (ended.error_is_ours, ended.traceback) == (False, "")


def test_our_own_fault_carries_its_traceback(registry: JobRegistry, caplog: pytest.LogCaptureFixture) -> None:
    def work(watch: Watch) -> None:
        raise KeyError("layer_types")

    ended = registry.wait(registry.submit("load", "Load x", work), PATIENCE)
    assert ended.state == "failed"
    assert ended.error == "'Load x' failed through a fault in shortviz (KeyError: 'layer_types')."
    assert ended.error_is_ours
    assert 'raise KeyError("layer_types")' in ended.traceback
    assert "Load x" not in ended.traceback
    assert caplog.records[0].exc_info is not None


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")])
def test_running_out_of_memory_is_said_in_words(registry: JobRegistry, error: Exception) -> None:
    def work(watch: Watch) -> None:
        raise error

    ended = registry.wait(registry.submit("load", "Load big", work), PATIENCE)
    assert ended.error == "'Load big' ran out of memory; use a smaller model or batch."
    assert not ended.error_is_ours


@pytest.mark.parametrize("fault", [SystemExit(3), KeyboardInterrupt(), RuntimeError("boom")])
def test_the_lane_outlives_whatever_a_job_raises(registry: JobRegistry, fault: BaseException) -> None:
    def work(watch: Watch) -> None:
        raise fault

    assert registry.wait(registry.submit("load", "bad", work), PATIENCE).error_is_ours
    assert registry.wait(registry.submit("load", "good", lambda watch: 1), PATIENCE).result == 1


def test_snapshots_are_taken_at_most_twice_a_second_and_always_at_the_end(clock: HandClock) -> None:
    registry = JobRegistry(clock=clock)
    taken: list[int] = []

    def work(watch: Watch) -> None:
        for k in range(101):  # ten reports a second for ten seconds
            watch.on_progress(progress(k, total=101, snapshot=lambda k=k: taken.append(k) or k))
            clock.now += 0.1
        watch.on_progress(progress(101, total=101, snapshot=lambda: taken.append(101) or 101))

    ended = registry.wait(registry.submit("measure", "Measure", work), PATIENCE)
    assert taken[0] == 0
    assert taken[-1] == 101
    assert ended.partial == 101
    assert 18 <= len(taken) <= 22
    registry.close()


def test_the_snapshot_of_a_stopping_job_is_taken_whatever_the_throttle_says(registry: JobRegistry) -> None:
    begun = threading.Event()

    def work(watch: Watch) -> None:
        watch.on_progress(progress(1, snapshot=lambda: "old"))
        begun.set()
        assert watch.stop.wait(PATIENCE)
        watch.on_progress(progress(2, snapshot=lambda: "new"))
        raise Stopped("Stopped.")

    job = registry.submit("measure", "Measure", work)
    assert begun.wait(PATIENCE)
    registry.cancel(job)
    assert registry.wait(job, PATIENCE).partial == "new"


def test_progress_without_a_total_is_throttled_too(clock: HandClock) -> None:
    registry = JobRegistry(clock=clock)
    taken: list[int] = []

    def work(watch: Watch) -> None:
        for k in range(10):
            watch.on_progress(progress(k, total=0, snapshot=lambda k=k: taken.append(k)))

    ended = registry.wait(registry.submit("load", "Load", work), PATIENCE)
    assert taken == [0]
    assert ended.fraction == 0.0
    registry.close()


def test_rate_and_time_left_follow_the_recent_pace(clock: HandClock) -> None:
    registry = JobRegistry(clock=clock)
    seen: list[tuple[float, float | None]] = []
    job_id: list[str] = []
    named = threading.Event()

    def work(watch: Watch) -> None:
        assert named.wait(PATIENCE)
        done = 300.0  # resumed: what was there before says nothing about the pace
        for seconds, rows in [(0, 0)] + [(1, 10)] * 3 + [(1, 40)] * 20:
            clock.now += seconds
            done += rows
            watch.on_progress(progress(done, total=2000))
            state = registry.state(job_id[0])
            seen.append((state.rate, state.eta_seconds))

    job_id.append(registry.submit("measure", "Measure", work))
    named.set()
    ended = registry.wait(job_id[0], PATIENCE)
    assert seen[0] == (0.0, None)
    assert seen[1] == (10.0, (2000 - 310) / 10)
    assert 10 < seen[4][0] < 40
    assert seen[-1][0] == pytest.approx(40, rel=0.01)
    assert (ended.rate, ended.eta_seconds) == (0.0, None)
    registry.close()


def test_the_rate_starts_anew_with_each_stage(clock: HandClock) -> None:
    registry = JobRegistry(clock=clock)
    rates: list[float] = []
    ids: list[str] = []
    named = threading.Event()

    def work(watch: Watch) -> None:
        assert named.wait(PATIENCE)
        for stage, done in [("load", 0), ("load", 50), ("measure", 0), ("measure", 5)]:
            watch.on_progress(progress(done, stage=stage))
            rates.append(registry.state(ids[0]).rate)
            clock.now += 1

    ids.append(registry.submit("measure", "Measure", work))
    named.set()
    registry.wait(ids[0], PATIENCE)
    assert rates == [0.0, 50.0, 0.0, 5.0]
    registry.close()


def test_a_state_is_a_frozen_copy_with_a_growing_version(registry: JobRegistry) -> None:
    gate = Gate("end")
    job = registry.submit("measure", "Measure", gate)
    assert gate.begun.wait(PATIENCE)
    before = registry.state(job)
    gate.go.set()
    after = registry.wait(job, PATIENCE)
    assert before.state == "running"
    assert after.version > before.version
    with pytest.raises(AttributeError):
        before.state = "done"  # type: ignore[misc]  # the point of the test


def test_finished_jobs_are_forgotten_by_age_and_live_ones_never(clock: HandClock) -> None:
    registry = JobRegistry(keep_seconds=60, clock=clock)
    old = registry.submit("load", "old", lambda watch: 1)
    registry.wait(old, PATIENCE)
    clock.now += 50
    gate = Gate()
    live = registry.submit("load", "live", gate)
    assert gate.begun.wait(PATIENCE)
    assert registry.state(old) is not None
    clock.now += 50
    registry.forget_finished(60)
    assert registry.state(old) is None
    assert registry.state(live).state == "running"
    gate.go.set()
    registry.wait(live, PATIENCE)
    clock.now += 61
    registry.submit("load", "new", lambda watch: 1)
    assert registry.state(live) is None
    registry.close()


def test_unknown_jobs_are_none_and_cancelling_an_ended_one_changes_nothing(registry: JobRegistry) -> None:
    assert registry.state("nothing") is None
    assert registry.wait("nothing", PATIENCE) is None
    registry.cancel("nothing")
    job = registry.submit("load", "Load", lambda watch: 1)
    ended = registry.wait(job, PATIENCE)
    registry.cancel(job)
    assert registry.state(job) == ended


def test_closing_stops_everything_and_refuses_more(clock: HandClock) -> None:
    registry = JobRegistry(clock=clock)
    begun = threading.Event()

    def work(watch: Watch) -> None:
        begun.set()
        assert watch.stop.wait(PATIENCE)

    running = registry.submit("measure", "running", work)
    assert begun.wait(PATIENCE)
    waiting = registry.submit("measure", "waiting", lambda watch: 1)
    registry.close()
    assert registry.state(waiting).state == "cancelled"
    assert registry.wait(running, PATIENCE).state == "cancelled"
    with pytest.raises(ShortvizError, match="shutting down"):
        registry.submit("measure", "late", lambda watch: 1)


def test_many_threads_may_submit_and_read_at_once(registry: JobRegistry) -> None:
    counted: list[int] = []
    start = threading.Barrier(6)
    jobs: list[str] = []

    def visitor() -> None:
        start.wait(PATIENCE)
        mine = registry.submit("evaluate", "x", lambda watch: counted.append(1), lane="inspect")
        jobs.append(mine)
        for _ in range(50):
            assert registry.state(mine) is not None
            registry.jobs()

    threads = [threading.Thread(target=visitor) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for job in jobs:
        assert registry.wait(job, PATIENCE).state == "done"
    assert len(counted) == 6


def test_a_process_that_ends_lets_its_running_job_come_to_its_next_check() -> None:
    program = """
import threading
from shortviz.service.queue import JobRegistry
begun = threading.Event()
def work(watch):
    begun.set()
    watch.stop.wait(20)
    print("came to its check", flush=True)
registry = JobRegistry()
registry.submit("measure", "Measure", work)
begun.wait(20)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "came to its check\n", "")
