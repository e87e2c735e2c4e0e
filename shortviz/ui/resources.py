"""The one bench of a process: jobs, models and runs, shared by all sessions."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import streamlit as st

from shortviz.job_state import JobControl, JobState, Lane
from shortviz.jobs import JobRegistry
from shortviz.records import Block, Evaluation, ModelRef, TextSpec
from shortviz.settings import settings
from shortviz.ui.shelves import ModelShelf, RunShelf, Shelf

if TYPE_CHECKING:
    from shortviz.losses import BaseScores
    from shortviz.records import WindowSet


@dataclass(frozen=True, kw_only=True, slots=True)
class JobContext:
    """What a job is about: enough for another tab to attach to it."""

    kind: str
    ref: ModelRef
    run_key: str | None = None
    calibration: TextSpec | None = None
    evaluation: TextSpec | None = None
    block: Block | None = None
    folder: str | None = None


@dataclass(kw_only=True, eq=False)
class Bench:
    """Everything that outlives a session. Its parts are safe to use from any thread."""

    jobs: JobRegistry = field(default_factory=JobRegistry)
    models: ModelShelf = field(default_factory=ModelShelf)
    runs: RunShelf
    measured: "Shelf[Evaluation]" = field(default_factory=lambda: Shelf(2000))
    """By (model, evaluation text, removed layers)."""
    continuations: "Shelf[str]" = field(default_factory=lambda: Shelf(500))
    """By (model, removed layers, prompt)."""
    windows: "Shelf[WindowSet]" = field(default_factory=lambda: Shelf(4))
    wanted_rows: list[int] = field(default_factory=list)
    """Rows of the measured map that people look at now; a running measurement takes them first."""
    base_scores: "Shelf[BaseScores]" = field(default_factory=lambda: Shelf(2))
    _contexts: "Shelf[JobContext]" = field(default_factory=lambda: Shelf(200))
    _submitting: Any = field(default_factory=threading.RLock)

    def submit(self, context: JobContext, title: str, work: Callable[[JobControl], Any], *, lane: Lane = "long") -> str:
        """Return the id of a new job; the same work that is waiting or running already is not started twice."""
        with self._submitting:
            for state in self.jobs.jobs():
                if state.live and not state.stopping and self._contexts.get(state.id) == context:
                    return state.id
            job_id = self.jobs.submit(context.kind, title, work, lane=lane)
            self._contexts.put(job_id, context)
            return job_id

    def context(self, job_id: str) -> JobContext | None:
        """Return what the job is about."""
        return self._contexts.get(job_id)

    def state(self, job_id: str | None) -> JobState | None:
        """Return how the job stands, or None."""
        return None if job_id is None else self.jobs.state(job_id)

    def inspecting(self, ref: ModelRef | None, block: Block, spec: TextSpec) -> str | None:
        """Return the live job that measures this block, whichever session began it."""
        for state in self.jobs.jobs():
            about = self._contexts.get(state.id) if state.live and state.kind == "inspect" else None
            if about is not None and (about.ref, about.block, about.evaluation) == (ref, block, spec):
                return state.id
        return None

    def close(self) -> None:
        """Cancel the jobs and let go of the models."""
        self.jobs.close()
        self.base_scores.clear()
        self.models.clear()


@st.cache_resource(show_spinner=False, on_release=Bench.close)
def bench() -> Bench:
    """Return the bench of this process."""
    return Bench(runs=RunShelf(settings().runs_dir))
