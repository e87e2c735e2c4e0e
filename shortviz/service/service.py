"""What the app keeps for the whole process: loaded models, runs, and numbers measured for clicked blocks."""

import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shortviz.errors import RunError, ShortvizError
from shortviz.files import free_bytes
from shortviz.progress import Watch
from shortviz.records.measured import Evaluation, TokenLoss
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, Removal
from shortviz.records.run import Run
from shortviz.records.text import TaskRows, TaskScore, TextInfo, TextSpec
from shortviz.runs import library
from shortviz.runs.library import title
from shortviz.runs.run import EXAMPLES, example_run, folder_name, has_example, load_run, save_run
from shortviz.service import policy
from shortviz.service.kept import Cache, ModelCache
from shortviz.service.place import Place
from shortviz.service.queue import JobRegistry, JobState
from shortviz.service.requests import AppRequest, EvaluateRequest, Request, lane_of, title_of
from shortviz.settings import settings

if TYPE_CHECKING:
    from shortviz.heal.adapter import Adapter
    from shortviz.measure.losses import BaseScores
    from shortviz.model.handle import ModelHandle
    from shortviz.records.text import WindowSet


EXAMPLE = "example"
"""Key of the bundled run that is shown first."""

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RunStore:
    """Runs by key: the bundled one, and the run directories of the app."""

    def __init__(self, folder: Path) -> None:
        """Read and write run directories in `folder`."""
        self.folder = folder
        self._runs: Cache[Run] = Cache(64)
        self._lock = threading.RLock()

    def path(self, key: str) -> Path:
        """Return the run directory of a key; raises RunError where the key could not be one of ours."""
        if not _KEY.fullmatch(key) or ".." in key:
            raise RunError(f"There is no run {key!r}; choose one from the Runs page.")
        return self.folder / key

    def get(self, key: str) -> Run | None:
        """Return the run, or None where there is none of that key; raises RunError where it cannot be read."""
        found = self._runs.get(key)
        if found is not None:
            return found
        if key in EXAMPLES:
            return self._runs.put(key, example_run(key)) if has_example(key) else None
        path = self.path(key)
        return self._runs.put(key, load_run(path)) if (path / "run.json").is_file() else None

    def put(self, key: str, run: Run) -> None:
        """Keep the run, in memory and (the bundled one excepted) on disk."""
        run = policy.without_prompts(settings(), run)
        with self._lock:
            if key not in EXAMPLES:
                save_run(run, self.path(key))
                self._make_room(key)
            self._runs.put(key, run)

    def listed(self, own: Collection[str] = ()) -> dict[str, Run]:
        """Return all runs by key, newest first, the bundled ones last; those that cannot be read are passed over.

        Where strangers meet, only runs of built-in texts: the others are of somebody's own text. A visitor's `own` come
        first, of whichever text.
        """
        found: dict[str, Run] = {}
        kept = [folder.name for folder in library.folders(self.folder) if _KEY.fullmatch(folder.name)]
        for key in (*sorted(kept, key=lambda key: key not in own), *EXAMPLES):
            try:
                run = self.get(key)
            except RunError:
                continue
            if run is not None and (key in own or policy.may_show(settings(), run)):
                found[key] = run
        return found

    def add(self, run: Run) -> tuple[str, bool]:
        """Keep a run that came from elsewhere under a key of its own; returns it, and whether the run is new here."""
        with self._lock:
            for key, known in self.listed().items():
                if library.same_measurement(known, run):
                    return key, False
            key = library.free_key(self.folder, folder_name(run))
            self.put(key, run)
        return key, True

    def remove(self, key: str) -> str:
        """Put a run aside; returns what `restore` brings it back by."""
        with self._lock:
            token = library.set_aside(self.path(key))
            self._runs.drop(key)
        return token

    def restore(self, token: str) -> str:
        """Bring back a run that was put aside; returns its key, a new one where another run has taken its place."""
        with self._lock:
            return library.bring_back(self.folder, token)

    def _make_room(self, newest: str) -> None:
        """Remove the oldest runs where strangers could fill the disk."""
        most = policy.most_runs(settings())
        if most is None:
            return
        for old in library.folders(self.folder)[most:]:
            if old.name != newest:
                shutil.rmtree(old, ignore_errors=True)

    def update(self, key: str, change: Callable[[Run | None], Run | None]) -> None:
        """Put what `change` makes of the run: in one step, for two jobs may add to the same run at once."""
        with self._lock:
            run = change(self.get(key))
            if run is not None:
                self.put(key, run)


_LATER = ("special_tokens", "chat_template", "long_rows")


def run_key(ref: ModelRef, spec: TextSpec) -> str:
    """Return the name of the run directory for a model and a calibration text."""
    name = re.sub(r"[^a-z0-9]+", "-", Path(ref.id).name.lower()).strip("-")[:40] or "model"
    # Fields that texts did not always have are named where they say something: older runs keep their names.
    spec = replace(spec, long_rows="cut" if spec.cuts else "auto")
    told = ((f.name, getattr(spec, f.name), f.default) for f in fields(spec))
    own = ", ".join(f"{key}={value!r}" for key, value, usual in told if key not in _LATER or value != usual)
    facts = [repr(ref), f"TextSpec({own})"]
    for file in (spec.value if spec.kind == "file" else "", spec.chat_template):
        if file and Path(file).is_file():  # changed text is another run
            stat = Path(file).stat()
            facts += [str(stat.st_size), str(stat.st_mtime_ns)]
    digest = hashlib.sha256(f"[{', '.join(facts)}]".encode()).hexdigest()[:10]
    return f"{name}-{digest}"


# The one bench of a process: jobs, models and runs, shared by all sessions.

Handle = Literal["wants", "sees", "left"]
"""What a job is to a visitor: asked for by them, come upon while they looked at what it measures, or left by them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a job is about: enough for another tab to attach to it, and for `policy` to judge it."""

    request: "Request | AppRequest"
    run_key: str | None = None


@dataclass(kw_only=True, eq=False)
class Service:
    """Everything that outlives a session. Its parts are safe to use from any thread.

    Where the app is hosted, every job passes `policy` in `submit`, and each visitor has a handle of their own on it:
    work that two of them asked for is done once, and goes on while one of them wants it.
    """

    carry_out: "Callable[[Request | AppRequest, Service, Place, Watch], Any]"
    """What does the work of a request: `execute.carry_out`."""
    visitor: Callable[[], str] = lambda: ""
    """Returns the secret name of the session that asks; "" outside of one."""
    jobs: JobRegistry = field(default_factory=lambda: JobRegistry(queue_limit=settings().max_queue))
    models: ModelCache = field(default_factory=lambda: ModelCache(policy.most_models(settings())))
    runs: RunStore
    measured: "Cache[Evaluation]" = field(default_factory=lambda: Cache(2000))
    """By `measure.measured_key`."""
    words: "Cache[tuple[TokenLoss, ...]]" = field(default_factory=lambda: Cache(100))
    """By the same: the first look, token by token."""
    continuations: "Cache[str]" = field(default_factory=lambda: Cache(500))
    """By (model, removed layers, prompt)."""
    treated: "Cache[ModelHandle]" = field(default_factory=lambda: Cache(*policy.most_treated(settings())))
    """Repaired and healed models, by (model, removed layers, methods), with the bytes of the tensors of their own."""
    adapters: "Cache[Adapter]" = field(default_factory=lambda: Cache(1))
    """What was learned last, by the same, where no run of the store keeps it."""
    tasks: "Cache[TaskScore]" = field(default_factory=lambda: Cache(500))
    """By (model, removed layers, fingerprint of the questions)."""
    questions: "Cache[TaskRows]" = field(default_factory=lambda: Cache(4))
    windows: "Cache[WindowSet]" = field(default_factory=lambda: Cache(4))
    texts: "Cache[TextInfo]" = field(default_factory=lambda: Cache(4))
    """What distances are averaged over, by (model, text)."""
    counts: "Cache[tuple[str, str]]" = field(default_factory=lambda: Cache(20))
    """What texts become, in words: by `measure.counts_of`."""
    wanted_rows: list[int] = field(default_factory=list)
    """Rows of the measured map that people look at now; a running measurement takes them first."""
    base_scores: "Cache[BaseScores]" = field(default_factory=lambda: Cache(2))
    _contexts: "Cache[Asked]" = field(default_factory=lambda: Cache(200))
    _visitors: "Cache[dict[str, Handle]]" = field(default_factory=lambda: Cache(200))
    """By job: what it is to each visitor who may see it."""
    _own_runs: "Cache[tuple[str, ...]]" = field(default_factory=lambda: Cache(200))
    """By visitor: the runs that their jobs go into, the newest first, where the app is hosted."""
    _submitting: Any = field(default_factory=threading.RLock)

    def submit(self, request: "Request | AppRequest", *, key: str | None = None, start: str | None = None) -> str:
        """Return the id of a new job; the same work that is waiting or running already is not started twice.

        A job that may not or cannot start is one that has failed, with the reason for people. Results go into run
        `key`, which begins as run `start` where it is new.
        """
        place = StorePlace(self.runs, key, start)

        def work(watch: Watch) -> Any:
            found = self.carry_out(request, self, place, watch)
            if isinstance(found, dict):
                return tuple(found)
            return key if isinstance(found, Run) else found  # ended jobs are remembered by the hundred

        return self.run(Asked(request=request, run_key=key), work)

    def run(self, context: Asked, work: Callable[[Watch], Any]) -> str:
        """Put any work into the queue, as `submit` does."""
        request, lane = context.request, lane_of(context.request)
        title = title_of(request)
        owner, rules = self.visitor(), settings()
        with self._submitting:
            live = [state for state in self.jobs.jobs() if state.live]
            same = next((j.id for j in live if not j.stopping and self._contexts.get(j.id) == context), None)
            try:
                policy.check_start(rules, context, self.own_live() if same is None else (), free_bytes())
                job_id = same or self.jobs.submit(request.kind, title, _timed(work), lane=lane)
                if context.run_key is not None and policy.knows_browsers(rules):
                    known = self._own_runs.get(owner) or ()
                    self._own_runs.put(owner, tuple(dict.fromkeys((context.run_key, *known))))
            except ShortvizError as error:
                job_id = self.jobs.refuse(request.kind, title, str(error), lane=lane)
            self._contexts.put(job_id, context)
            self._hold(job_id, owner, "wants")
            return job_id

    def stop(self, job_id: str) -> None:
        """Leave a job: the work ends when the last who wanted it has left. On one's own machine it ends at once."""
        with self._submitting:
            if policy.knows_browsers(settings()):
                if not self._wants(job_id):
                    return
                self._hold(job_id, self.visitor(), "left")
                if "wants" in (self._visitors.get(job_id) or {}).values():
                    return
            self.jobs.cancel(job_id)

    def context(self, job_id: str) -> Asked | None:
        """Return what the job is about; None where this session may not see it."""
        return self._contexts.get(job_id) if self._visible(job_id) else None

    def state(self, job_id: str | None) -> JobState | None:
        """Return how the job stands, or None where there is none that this session may see.

        One that waits says which job runs before it, and its seconds left are that one's. One that this visitor has
        left while others go on with it is cancelled for them, and `stopping` until the work ends.
        """
        found = None if job_id is None or not self._visible(job_id) else self.jobs.state(job_id)
        if found is None or not found.live:
            return found
        handles = self._visitors.get(found.id) or {}
        if handles.get(self.visitor()) == "left" and "wants" in handles.values():
            return replace(found, state="cancelled", stopping=True, position=0, rate=0.0, eta_seconds=None)
        if found.state != "queued":
            return found
        ahead = [job for job in self.jobs.jobs() if job.state == "running" and job.lane == found.lane]
        seen = next((job for job in ahead if self._visible(job.id)), None)
        return found if seen is None else replace(found, waits_for=seen.title, eta_seconds=seen.eta_seconds)

    def own_live(self) -> tuple[JobState, ...]:
        """Return the live jobs that this visitor wants, oldest first; none on one's own machine: everybody sees all."""
        if not policy.knows_browsers(settings()):
            return ()
        return tuple(job for job in self.jobs.jobs() if job.live and self._wants(job.id))

    def running(self) -> tuple[JobState, ...]:
        """Return the live long jobs that this visitor may see, their own first, then by age."""
        long = [job for job in self.jobs.jobs() if job.live and job.lane == "long"]
        seen = [job for one in long if (job := self.state(one.id)) is not None and job.live]
        return tuple(sorted(seen, key=lambda job: not self._wants(job.id)))

    def own_runs(self) -> tuple[str, ...]:
        """Return the runs that this visitor's jobs went into, the newest first; none on one's own machine."""
        return self._own_runs.get(self.visitor()) or ()

    def inspecting(self, ref: ModelRef | None, block: Block, spec: TextSpec, own: str | None = None) -> str | None:
        """Return the live job that measures this block: this session's `own`, or whichever session began one."""
        for state in sorted(self.jobs.jobs(), key=lambda job: job.id != own):
            about = self._contexts.get(state.id) if state.live and state.kind == EvaluateRequest.kind else None
            asked = about.request if about is not None else None
            wanted = (ref, Removal(block=block), spec)
            if isinstance(asked, EvaluateRequest) and (asked.model, asked.removal, asked.text) == wanted:
                self._hold(state.id, self.visitor(), "wants" if self._wants(state.id) else "sees")
                return state.id
        return None

    def treating(self, kinds: Collection[str], ref: ModelRef | None, removed: tuple[int, ...]) -> JobState | None:
        """Return the newest job of these kinds that is about this cut, a live one first, whichever session began it."""
        found = None
        for one in self.jobs.jobs():
            about = self._contexts.get(one.id) if one.kind in kinds else None
            state = self.state(one.id)
            if about is None or about.request.model != ref or state is None:  # type: ignore[union-attr]
                continue
            removal = getattr(about.request, "removal", None)
            if (removal.removed if removal is not None else ()) != removed:
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

    def _hold(self, job_id: str, owner: str, how: Handle) -> None:
        with self._submitting:
            self._visitors.put(job_id, (self._visitors.get(job_id) or {}) | {owner: how})

    def _wants(self, job_id: str) -> bool:
        return (self._visitors.get(job_id) or {}).get(self.visitor()) == "wants"

    def _visible(self, job_id: str) -> bool:
        return not policy.knows_browsers(settings()) or self.visitor() in (self._visitors.get(job_id) or ())


def _timed(work: Callable[[Watch], Any]) -> Callable[[Watch], Any]:
    """Return work that is asked to stop once its time is up, where the app is hosted."""
    seconds = policy.most_seconds(settings())
    if seconds is None:
        return work

    def timed(watch: Watch) -> Any:
        assert watch.stop is not None, "a job can be stopped"
        alarm = threading.Timer(seconds, watch.stop.set)
        alarm.daemon = True
        alarm.start()
        try:
            return work(watch)
        finally:
            alarm.cancel()

    return timed


class StorePlace(Place):
    """A run of the app's store; one that is new begins as another that is shown."""

    replaces = True
    other_text = "choose that text again, or measure the map anew"

    def __init__(self, store: RunStore, key: str | None, start: str | None = None) -> None:
        """Keep the run under `key`."""
        super().__init__(store.path(key) if key is not None else None)
        self._store, self._key, self._start = store, key, start

    @property
    def name(self) -> str:
        """The key of the run."""
        return self._key or ""

    def part(self, name: str, model: ModelRef, text: TextSpec) -> Place:
        """Return the run of one of several texts."""
        return StorePlace(self._store, run_key(model, text))

    @property
    def run(self) -> Run | None:
        """The run as it is now, or what it begins as."""
        own = self._store.get(self._key) if self._key is not None else None
        return own or (self._store.get(self._start) if self._start is not None else None)

    def update(self, change: Callable[[Run | None], Run]) -> Run:
        """Keep what `change` makes of the run: in one step, for two jobs may add to the same run at once."""
        found: list[Run] = []
        if self._key is None or not policy.may_add(settings(), bundled=self._key in EXAMPLES):
            return change(self.run)
        self._store.update(self._key, lambda old: found.append(change(old or self.run)) or found[-1])  # type: ignore[func-returns-value]
        return found[-1]

    @contextmanager
    def begun(self, run: Run) -> Iterator[None]:
        """Nothing is saved before there is something to show; a run of another text or model is refused before that."""
        old = self._store.get(self._key) if self._key is not None else None
        if old is not None and old.distances is not None and old.text.fingerprint != run.text.fingerprint:
            raise RunError(
                f"The text that was given has other tokens than {old.text.source}, which the run {title(old)} was "
                "measured on; give that text, or choose another kind of text first, which begins a run of its own."
            )
        if old is not None and (old.model.id, old.model.dtype) != (run.model.id, run.model.dtype):
            raise RunError(
                f"The run {title(old)} is of {old.model.id} in {old.model.dtype}, and {run.model.id} in "
                f"{run.model.dtype} was to be measured; load the run's model, or choose this one on the Model page, "
                "which begins a run of its own."
            )
        yield

    @property
    def keys(self) -> tuple[str, ...]:
        """That which the results go into, and that which is shown."""
        return tuple(dict.fromkeys(key for key in (self._key, self._start) if key is not None))
