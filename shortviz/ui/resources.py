"""The one bench of a process: jobs, models and runs, shared by all sessions."""

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shortviz import policy
from shortviz.errors import ShortvizError
from shortviz.heal_settings import HealSettings
from shortviz.job_state import JobState, Lane
from shortviz.jobs import JobRegistry
from shortviz.memory import free_bytes
from shortviz.progress import Watch
from shortviz.records import Block, Evaluation, ModelRef, TaskRows, TaskScore, TaskSpec, TextSpec
from shortviz.settings import settings
from shortviz.ui.shelves import ModelShelf, RunShelf, Shelf

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle
    from shortviz.losses import BaseScores
    from shortviz.records import WindowSet


@dataclass(frozen=True, kw_only=True, slots=True)
class JobContext:
    """What a job is about: enough for another tab to attach to it, and for `policy` to judge it."""

    kind: str
    ref: ModelRef
    run_key: str | None = None
    calibration: TextSpec | None = None
    evaluation: TextSpec | None = None
    block: Block | None = None
    folder: str | None = None
    prompt: str = ""
    texts: tuple[TextSpec, ...] = ()
    removed: tuple[int, ...] = ()
    """The cut that is repaired, healed or exported."""
    methods: tuple[str, ...] = ()
    """Treatments after the cut: those to be made, or those of the model that is exported."""
    training: TextSpec | None = None
    recipe: HealSettings | None = None
    to_layers: int | None = None
    task: TaskSpec | None = None
    plans: tuple[tuple[int, ...], ...] = ()
    layers: int = 0
    target: str = ""
    """Repository that is pushed to."""


def _treated_shelf() -> "Shelf[ModelHandle]":
    rules = settings()
    return Shelf(1, rules.max_treated_mb * 2**20) if rules.is_hosted else Shelf(3)


@dataclass(kw_only=True, eq=False)
class Bench:
    """Everything that outlives a session. Its parts are safe to use from any thread.

    Where the app is hosted, every job passes `policy` in `submit`, and belongs to the session that started it.
    """

    visitor: Callable[[], str] = lambda: ""
    """Returns the secret name of the session that asks; "" outside of one."""
    jobs: JobRegistry = field(init=False)
    models: ModelShelf = field(default_factory=lambda: ModelShelf(1 if settings().is_hosted else 2))
    runs: RunShelf
    measured: "Shelf[Evaluation]" = field(default_factory=lambda: Shelf(2000))
    """By (model, evaluation text, removed layers)."""
    continuations: "Shelf[str]" = field(default_factory=lambda: Shelf(500))
    """By (model, removed layers, prompt)."""
    treated: "Shelf[ModelHandle]" = field(default_factory=_treated_shelf)
    """Repaired and healed models, by (model, removed layers, methods), with the bytes of the tensors of their own."""
    tasks: "Shelf[TaskScore]" = field(default_factory=lambda: Shelf(500))
    """By (model, removed layers, fingerprint of the questions)."""
    questions: "Shelf[TaskRows]" = field(default_factory=lambda: Shelf(4))
    windows: "Shelf[WindowSet]" = field(default_factory=lambda: Shelf(4))
    wanted_rows: list[int] = field(default_factory=list)
    """Rows of the measured map that people look at now; a running measurement takes them first."""
    base_scores: "Shelf[BaseScores]" = field(default_factory=lambda: Shelf(2))
    _contexts: "Shelf[JobContext]" = field(default_factory=lambda: Shelf(200))
    _watchers: "Shelf[frozenset[str]]" = field(default_factory=lambda: Shelf(200))
    """By job: the sessions that may see it, where the app is hosted."""
    _submitting: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.jobs = JobRegistry(queue_limit=settings().max_queue, may_cancel=self._is_own)

    def submit(self, context: JobContext, title: str, work: Callable[[Watch], Any], *, lane: Lane = "long") -> str:
        """Return the id of a new job; the same work that is waiting or running already is not started twice.

        A job that may not or cannot start is one that has failed, with the reason for people.
        """
        owner, rules = self.visitor(), settings()
        with self._submitting:
            live = [state for state in self.jobs.jobs() if state.live]
            same = next((j.id for j in live if not j.stopping and self._contexts.get(j.id) == context), None)
            try:
                policy.check_start(rules, context, live if same is None else (), owner, free_bytes())
                job_id = same or self.jobs.submit(context.kind, title, _timed(work), lane=lane, owner=owner)
            except ShortvizError as error:
                job_id = self.jobs.refuse(context.kind, title, str(error), lane=lane, owner=owner)
            self._contexts.put(job_id, context)
            self._watch(job_id, owner)
            return job_id

    def context(self, job_id: str) -> JobContext | None:
        """Return what the job is about; None where this session may not see it."""
        return self._contexts.get(job_id) if self._visible(job_id) else None

    def state(self, job_id: str | None) -> JobState | None:
        """Return how the job stands, or None where there is none that this session may see."""
        return None if job_id is None or not self._visible(job_id) else self.jobs.state(job_id)

    def own_live(self) -> tuple[JobState, ...]:
        """Return the live jobs of this visitor, oldest first; none on one's own machine, where everybody sees all."""
        if not settings().is_hosted:
            return ()
        return tuple(job for job in self.jobs.jobs() if job.live and job.owner == self.visitor())

    def inspecting(self, ref: ModelRef | None, block: Block, spec: TextSpec, own: str | None = None) -> str | None:
        """Return the live job that measures this block: this session's `own`, or whichever session began one."""
        for state in sorted(self.jobs.jobs(), key=lambda job: job.id != own):
            about = self._contexts.get(state.id) if state.live and state.kind == "inspect" else None
            if about is not None and (about.ref, about.block, about.evaluation) == (ref, block, spec):
                self._watch(state.id, self.visitor())
                return state.id
        return None

    def treating(self, kinds: Collection[str], ref: ModelRef | None, removed: tuple[int, ...]) -> JobState | None:
        """Return the newest job of these kinds that is about this cut, a live one first, whichever session began it."""
        found = None
        for state in self.jobs.jobs():
            about = self._contexts.get(state.id) if state.kind in kinds else None
            if about is None or (about.ref, about.removed) != (ref, removed) or not self._visible(state.id):
                continue
            if found is None or state.live or not found.live:
                found = state
        return found

    def close(self) -> None:
        """Cancel the jobs and let go of the models."""
        self.jobs.close()
        self.treated.clear()
        self.base_scores.clear()
        self.models.clear()

    def _watch(self, job_id: str, owner: str) -> None:
        self._watchers.put(job_id, (self._watchers.get(job_id) or frozenset()) | {owner})

    def _is_own(self, job: JobState) -> bool:
        """Return whether whoever asks may stop the job: on one's own machine, everybody."""
        return not settings().is_hosted or job.owner == self.visitor()

    def _visible(self, job_id: str) -> bool:
        return not settings().is_hosted or self.visitor() in (self._watchers.get(job_id) or ())


def _timed(work: Callable[[Watch], Any]) -> Callable[[Watch], Any]:
    """Return work that is asked to stop once its time is up, where the app is hosted."""
    rules = settings()
    if not rules.is_hosted:
        return work

    def timed(watch: Watch) -> Any:
        assert watch.stop is not None, "a job can be stopped"
        alarm = threading.Timer(rules.max_job_seconds, watch.stop.set)
        alarm.daemon = True
        alarm.start()
        try:
            return work(watch)
        finally:
            alarm.cancel()

    return timed
