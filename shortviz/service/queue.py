"""Background jobs: two lanes with one worker each, cancel, progress with rate and ETA, partial results.

The shape follows Streamlit's proposed `st.task` (pull request #17067), so that it can be swapped when that ships.
No streamlit and no torch here: a job is any function that takes a Watch.
"""

import atexit
import logging
import math
import threading
import time
import traceback
import uuid
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from shortviz.errors import ShortvizError, Stopped, is_out_of_memory
from shortviz.progress import Progress, Watch

# What is known about a background job at one moment, and the rate it runs at.

Lane = Literal["long", "inspect"]
JobStatus = Literal["queued", "running", "done", "failed", "cancelled"]

_SMOOTHING_SECONDS = 3.0
_SHORTEST_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """A job as it stood at one moment; copied under the lock, never changed afterwards."""

    id: str
    kind: str
    """What the job does, e.g. `measure`, `load`, `export`, `evaluate`."""
    title: str
    """For people."""
    lane: Lane = "long"
    state: JobStatus = "queued"
    stopping: bool = False
    """Cancel was asked and the work has not come back yet."""
    stage: str = ""
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    detail: str = ""
    rate: float = 0.0
    """Units per second, smoothed; 0 where it is not known yet."""
    eta_seconds: float | None = None
    """Seconds left in this stage when `done` was reported; None where it is not known."""
    partial: Any = None
    """Newest partial record, at most half a second older than the progress beside it."""
    result: Any = None
    """What the work returned; after a cancel, the partial record it kept, if any."""
    error: str = ""
    """One sentence for people."""
    error_is_ours: bool = False
    """True where the error is a fault of shortviz rather than of the input."""
    traceback: str = ""
    """Only where the error is ours."""
    version: int = 0
    """Grows at each change."""
    position: int = 0
    """Place in the queue, 1 = next; 0 when not waiting."""
    waits_for: str = ""
    """Title of the job that runs before it, where whoever looks may see that one."""
    created: float = 0.0
    """Unix time."""
    finished: float | None = None
    """Unix time."""

    @property
    def live(self) -> bool:
        """Whether the job is still waiting or running."""
        return self.state in ("queued", "running")

    @property
    def record(self) -> Any:
        """The result where there is one, else the newest partial record, else None."""
        return self.partial if self.result is None else self.result

    @property
    def fraction(self) -> float:
        """Share of this stage that is done, 0..1."""
        return min(max(self.done / self.total, 0.0), 1.0) if self.total > 0 else 0.0


@dataclass(kw_only=True, slots=True, eq=False)
class RateMeter:
    """An exponentially weighted rate that starts anew with each stage, and from the count a stage resumes at."""

    stage: str = ""
    moment: float = 0.0
    done: float = 0.0
    value: float = 0.0

    def rate(self, progress: Progress, now: float) -> float:
        """Return units per second up to `now` (seconds); 0.0 until a stage has reported twice."""
        stage = f"{progress.stage}/{progress.unit}"
        seconds = now - self.moment
        if stage != self.stage or progress.done < self.done:
            self.value = 0.0
        elif seconds <= _SHORTEST_SECONDS:  # says nothing yet: count it into the next report
            return self.value
        else:
            latest = (progress.done - self.done) / seconds
            weight = 1 - math.exp(-seconds / _SMOOTHING_SECONDS) if self.value > 0 else 1.0
            self.value += weight * (latest - self.value)
        self.stage, self.moment, self.done = stage, now, progress.done
        return self.value


LANES: tuple[Lane, ...] = ("long", "inspect")

_SNAPSHOT_SECONDS = 0.5
_EXIT_SECONDS = 5.0
_MOST_ENDED = 500
_log = logging.getLogger(__name__)


Work = Callable[[Watch], Any]


@dataclass(kw_only=True, slots=True, eq=False)
class _Job:
    """The registry's own mutable side of a job."""

    state: JobState
    work: Work | None
    stop: threading.Event = field(default_factory=threading.Event)
    meter: RateMeter = field(default_factory=RateMeter)
    snapshot_at: float = float("-inf")
    finished_at: float = float("inf")

    def change(self, **fields: Any) -> None:
        self.state = replace(self.state, version=self.state.version + 1, **fields)


class JobRegistry:
    """Jobs of one process: lane `long` (measure, load, export) and lane `inspect` (evaluate a clicked block).

    Each lane has one worker and takes jobs first come, first served. All methods may be called from any thread.
    """

    def __init__(
        self,
        *,
        queue_limit: int = 8,
        keep_seconds: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an empty registry; its threads start with the first job of their lane.

        Args:
            queue_limit: jobs that may wait in a lane.
            keep_seconds: age at which finished jobs (and their results) are forgotten at the next submit.
            clock: seconds, never going back; a test hands in its own.
        """
        self._changed = threading.Condition()
        self._jobs: dict[str, _Job] = {}
        self._queues: dict[Lane, deque[_Job]] = {lane: deque() for lane in LANES}
        self._workers: dict[Lane, threading.Thread] = {}
        self._queue_limit = queue_limit
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._closed = False

    def submit(self, kind: str, title: str, work: Work, *, lane: Lane = "long") -> str:
        """Return the id of a new job that will run `work` in its lane.

        Raises:
            ShortvizError: the lane's queue is full, or the registry was closed.
        """
        self.forget_finished(self._keep_seconds)
        with self._changed:
            if self._closed:
                raise ShortvizError(f"The job '{title}' cannot start: the app is shutting down; start it again.")
            waiting = self._queues[lane]
            if len(waiting) >= self._queue_limit:
                raise ShortvizError(
                    f"The job '{title}' cannot start: {len(waiting)} jobs are waiting already; "
                    "wait for one to finish or cancel one."
                )
            state = JobState(id=uuid.uuid4().hex[:12], kind=kind, title=title, lane=lane, created=time.time())
            job = _Job(state=state, work=work)
            self._jobs[state.id] = job
            waiting.append(job)
            self._renumber(lane)
            if not self._workers:
                atexit.register(_close_at_exit, weakref.ref(self))
            if lane not in self._workers:
                # A daemon: a job that computes must not keep a closed app alive.
                worker = threading.Thread(target=self._serve, args=(lane,), name=f"shortviz-{lane}", daemon=True)
                self._workers[lane] = worker
                worker.start()
            self._changed.notify_all()
            return state.id

    def refuse(self, kind: str, title: str, error: str, *, lane: Lane = "long") -> str:
        """Return the id of a job that failed before it began, so that it is told where jobs of its kind are told."""
        now = time.time()
        state = JobState(
            id=uuid.uuid4().hex[:12],
            kind=kind,
            title=title,
            lane=lane,
            state="failed",
            error=error,
            created=now,
            finished=now,
        )
        with self._changed:
            self._jobs[state.id] = _Job(state=state, work=None, finished_at=self._clock())
            ended = [key for key, job in self._jobs.items() if not job.state.live]
            for key in ended[: max(len(ended) - _MOST_ENDED, 0)]:
                del self._jobs[key]
        return state.id

    def state(self, job_id: str) -> JobState | None:
        """Return the job as it stands now, or None where there is no such job (any more)."""
        with self._changed:
            job = self._jobs.get(job_id)
            return None if job is None else job.state

    def jobs(self) -> tuple[JobState, ...]:
        """Return all jobs as they stand now, oldest first."""
        with self._changed:
            return tuple(job.state for job in self._jobs.values())

    def wait(self, job_id: str, timeout: float | None = None) -> JobState | None:
        """Return the job when it has ended, or as it stands after `timeout` seconds; None where there is none."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_live(job_id), timeout)
        return self.state(job_id)

    def cancel(self, job_id: str) -> None:
        """Take a waiting job out of the queue, or ask a running one to stop; nothing happens to others."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or not job.state.live:
                return
            job.stop.set()
            if job.state.state == "queued":
                self._queues[job.state.lane].remove(job)
                self._finish(job, "cancelled")
                self._renumber(job.state.lane)
            else:
                job.change(stopping=True)
            self._changed.notify_all()

    def forget_finished(self, older_than_seconds: float = 0.0) -> None:
        """Drop ended jobs, and with them their results, that ended at least this long ago."""
        with self._changed:
            limit = self._clock() - older_than_seconds
            self._jobs = {key: job for key, job in self._jobs.items() if job.finished_at > limit}

    def close(self, *, wait_seconds: float = 0.0) -> None:
        """Cancel everything and give the workers time to end; no job can be submitted afterwards."""
        with self._changed:
            self._closed = True
            for job_id in tuple(self._jobs):
                self.cancel(job_id)
            self._changed.notify_all()
        for worker in tuple(self._workers.values()):
            if worker is not threading.current_thread():
                worker.join(wait_seconds)

    def _is_live(self, job_id: str) -> bool:
        job = self._jobs.get(job_id)
        return job is not None and job.state.live

    def _renumber(self, lane: Lane) -> None:
        for position, job in enumerate(self._queues[lane], start=1):
            if job.state.position != position:
                job.change(position=position)

    def _finish(self, job: _Job, state: JobStatus, **fields: Any) -> None:
        job.work = None
        job.finished_at = self._clock()
        job.change(state=state, stopping=False, position=0, rate=0.0, eta_seconds=None, finished=time.time(), **fields)
        self._changed.notify_all()

    def _serve(self, lane: Lane) -> None:
        waiting = self._queues[lane]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: waiting or self._closed)
                if not waiting:
                    return
                job = waiting.popleft()
                work = job.work
                job.change(state="running", position=0)
                self._renumber(lane)
                self._changed.notify_all()
            assert work is not None, "a waiting job keeps its work"
            self._run(job, work)
            del job, work

    def _run(self, job: _Job, work: Work) -> None:
        """Run the work; whatever it raises ends this job only."""
        watch = Watch(lambda progress: self._note(job, progress), job.stop)
        outcome: tuple[JobStatus, dict[str, Any]]
        try:
            result = work(watch)
            outcome = ("cancelled" if job.stop.is_set() else "done"), {"result": result}
        except Stopped:
            outcome = "cancelled", {}
        except ShortvizError as error:
            outcome = "failed", {"error": str(error)}
        except BaseException as error:  # the job boundary: the lane outlives its job, whatever it raised
            outcome = "failed", _told(job, error)
        with self._changed:
            self._finish(job, outcome[0], **outcome[1])

    def _note(self, job: _Job, progress: Progress) -> None:
        """Store progress; take its snapshot at most twice a second, and always at the end."""
        now = self._clock()
        at_end = 0 < progress.total <= progress.done or job.stop.is_set()
        fields: dict[str, Any] = {}
        if progress.snapshot is not None and (at_end or now - job.snapshot_at >= _SNAPSHOT_SECONDS):
            fields["partial"] = progress.snapshot()  # not under the lock: it may take a while
            job.snapshot_at = now
        with self._changed:
            rate = job.meter.rate(progress, now)
            left = max(progress.total - progress.done, 0.0)
            job.change(
                stage=progress.stage,
                done=progress.done,
                total=progress.total,
                unit=progress.unit,
                detail=progress.detail,
                rate=rate,
                eta_seconds=left / rate if rate > 0 else None,
                **fields,
            )
            self._changed.notify_all()


def _close_at_exit(registry: "weakref.ref[JobRegistry]") -> None:
    """Let running work come to its next check: torch aborts the process when its thread is torn down mid-batch."""
    found = registry()
    if found is not None:
        found.close(wait_seconds=_EXIT_SECONDS)


def _told(job: _Job, error: BaseException) -> dict[str, Any]:
    """Return what a job's state says of an error that is no ShortvizError; call it while handling that error."""
    if is_out_of_memory(error):
        return {"error": f"'{job.state.title}' ran out of memory; use a smaller model or batch."}
    _log.exception("job %s (%s) failed", job.state.id, job.state.kind)
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    text = f"'{job.state.title}' failed through a fault in shortviz ({said})."
    return {"error": text, "error_is_ours": True, "traceback": traceback.format_exc()}
