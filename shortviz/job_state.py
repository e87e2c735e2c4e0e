"""What is known about a background job at one moment, and the rate it runs at."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from shortviz.progress import Progress

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
    owner: str = ""
    """Session that submitted it."""
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
