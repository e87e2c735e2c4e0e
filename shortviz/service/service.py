"""What the app keeps for the whole process: loaded models, runs, and numbers measured for clicked blocks."""

import gc
import hashlib
import math
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cachetools import LRUCache

from shortviz.errors import RunError, ShortvizError
from shortviz.files import free_bytes
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import layers_text
from shortviz.records.measured import Evaluation
from shortviz.records.model import ModelEstimate, ModelRef
from shortviz.records.plan import Block, Removal
from shortviz.records.run import Run
from shortviz.records.text import TaskRows, TaskScore, TextSpec
from shortviz.runs import library
from shortviz.runs.run import EXAMPLES, FILE, example_run, folder_name, has_example, load_run, save_run
from shortviz.service import policy
from shortviz.service.place import Place
from shortviz.service.queue import JobRegistry, JobState, Lane
from shortviz.service.requests import AppRequest, EvaluateRequest, Request
from shortviz.settings import settings

if TYPE_CHECKING:
    from shortviz.heal.adapter import Adapter
    from shortviz.measure.losses import BaseScores
    from shortviz.model.handle import ModelHandle
    from shortviz.model.load import ResolvedModel
    from shortviz.records.text import WindowSet


EXAMPLE = "example"
"""Key of the bundled run that is shown first."""

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_V = TypeVar("_V")
_FRESH_SECONDS = 60.0
"""For so long what was found of a model's files is not looked up again: files and free memory change."""


class Cache(Generic[_V]):
    """A small LRU cache for every thread, limited by the number of its entries and, where that is said, their bytes."""

    def __init__(self, limit: int, most_bytes: float = math.inf) -> None:
        """Keep at most `limit` entries, of at most `most_bytes` together."""
        self._limit = limit
        self._items: LRUCache[Hashable, tuple[_V | None, int]] = LRUCache(most_bytes, getsizeof=itemgetter(1))
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> _V | None:
        """Return the entry, or None."""
        with self._lock:
            return self._items.get(key, (None, 0))[0]

    def put(self, key: Hashable, value: _V, num_bytes: int = 0) -> _V:
        """Keep the entry, and return it; one that is too large by itself is not kept, and drives no other out."""
        with self._lock:
            self._items.pop(key, None)
            if num_bytes <= self._items.maxsize:
                self._items[key] = value, num_bytes
            if len(self._items) > self._limit:
                self._items.popitem()
        return value

    def drop(self, key: Hashable) -> None:
        """Forget one entry."""
        with self._lock:
            self._items.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._items.clear()


_importing = threading.Lock()


def import_engine() -> None:
    """Import torch and transformers: seconds, the first time. One thread at a time, so that none sees half a module."""
    with _importing:
        import shortviz.measure.losses
        import shortviz.model.load
        import shortviz.model.prune
        import shortviz.text.tokens  # noqa: F401


class ModelCache:
    """Loaded models, shared by all sessions and never changed; at most two are kept."""

    def __init__(self, limit: int = 2) -> None:
        """Keep at most `limit` models in memory."""
        self._handles: Cache[ModelHandle] = Cache(limit)
        self._resolved: Cache[tuple[float, ResolvedModel]] = Cache(1)
        self._loading = threading.Lock()

    def get(self, ref: ModelRef) -> "ModelHandle | None":
        """Return the model where it is loaded; starts nothing."""
        return self._handles.get(ref)

    def resolve(self, ref: ModelRef, watch: Watch = NO_WATCH) -> "ResolvedModel":
        """Return the model's files, headers, config and size, for background jobs only; `load` does not ask again."""
        import_engine()
        from shortviz.model.load import resolve

        moment, found = self._resolved.get(ref) or (-math.inf, None)
        if found is None or time.monotonic() - moment > _FRESH_SECONDS:
            found = resolve(ref, watch=watch)
            self._resolved.put(ref, (time.monotonic(), found))
        return found

    def estimate(self, ref: ModelRef) -> ModelEstimate:
        """Return what loading would cost; for background jobs only."""
        self._resolved.drop(ref)  # files and free memory change
        return self.resolve(ref).estimate

    def load(self, ref: ModelRef, watch: Watch, fits: Callable[[int], object] | None = None) -> "ModelHandle":
        """Return the model, loading it where needed; for background jobs only (torch is imported here).

        `fits` is called with the number of layers before any weight is read, and raises where that will not do.
        """
        with self._loading:
            found = self._handles.get(ref)
            if found is not None:
                if fits is not None:
                    fits(found.info.num_layers)
                return found
            watch.tell("start", done=0, total=1, unit="steps", detail="starting the engine")
            resolved = self.resolve(ref, watch)
            from shortviz.model.load import load

            size = resolved.estimate
            watch.say(size.words)
            policy.check_estimate(settings(), size)
            if fits is not None:
                fits(size.num_layers)
            self._resolved.drop(ref)
            return self._handles.put(ref, load(resolved, watch=watch))

    def clear(self) -> None:
        """Let go of all models and give a GPU's memory back."""
        self._handles.clear()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


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

    def listed(self) -> dict[str, Run]:
        """Return all runs by key, newest first, the bundled ones last; those that cannot be read are passed over.

        Where strangers meet, only runs of built-in texts: the others are of somebody's own text.
        """
        found: dict[str, Run] = {}
        own = [folder.name for folder in library.folders(self.folder) if _KEY.fullmatch(folder.name)]
        for key in (*own, *EXAMPLES):
            try:
                run = self.get(key)
            except RunError:
                continue
            if run is not None and policy.may_show(settings(), run):
                found[key] = run
        return found

    def add(self, run: Run) -> str:
        """Keep a run that came from elsewhere, under a key of its own; returns the key."""
        with self._lock:
            key = library.free_key(self.folder, folder_name(run))
            self.put(key, run)
        return key

    def rename(self, key: str, name: str) -> None:
        """Give a run of this machine another name."""
        self.update(key, lambda run: library.renamed(run, name) if run is not None else None)

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
        found = sorted(self.folder.glob(f"*/{FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in found[most:]:
            if old.parent.name != newest:
                shutil.rmtree(old.parent, ignore_errors=True)

    def update(self, key: str, change: Callable[[Run | None], Run | None]) -> None:
        """Put what `change` makes of the run: in one step, for two jobs may add to the same run at once."""
        with self._lock:
            run = change(self.get(key))
            if run is not None:
                self.put(key, run)


def run_key(ref: ModelRef, spec: TextSpec) -> str:
    """Return the name of the run directory for a model and a calibration text."""
    name = re.sub(r"[^a-z0-9]+", "-", Path(ref.id).name.lower()).strip("-")[:40] or "model"
    facts: list[object] = [ref, spec]
    if spec.kind == "file" and Path(spec.value).is_file():  # changed text is another run
        stat = Path(spec.value).stat()
        facts += [stat.st_size, stat.st_mtime_ns]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:10]
    return f"{name}-{digest}"


# The one bench of a process: jobs, models and runs, shared by all sessions.


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a job is about: enough for another tab to attach to it, and for `policy` to judge it."""

    request: "Request | AppRequest"
    run_key: str | None = None


def _treated_cache() -> "Cache[ModelHandle]":
    return Cache(*policy.most_treated(settings()))


@dataclass(kw_only=True, eq=False)
class Service:
    """Everything that outlives a session. Its parts are safe to use from any thread.

    Where the app is hosted, every job passes `policy` in `submit`, and belongs to the session that started it.
    """

    carry_out: "Callable[[Request | AppRequest, Service, Place, Watch], Any]"
    """What does the work of a request: `execute.carry_out`."""
    visitor: Callable[[], str] = lambda: ""
    """Returns the secret name of the session that asks; "" outside of one."""
    jobs: JobRegistry = field(init=False)
    models: ModelCache = field(default_factory=lambda: ModelCache(policy.most_models(settings())))
    runs: RunStore
    measured: "Cache[Evaluation]" = field(default_factory=lambda: Cache(2000))
    """By `measure.measured_key`."""
    continuations: "Cache[str]" = field(default_factory=lambda: Cache(500))
    """By (model, removed layers, prompt)."""
    treated: "Cache[ModelHandle]" = field(default_factory=_treated_cache)
    """Repaired and healed models, by (model, removed layers, methods), with the bytes of the tensors of their own."""
    adapters: "Cache[Adapter]" = field(default_factory=lambda: Cache(1))
    """What was learned last, by the same, where no run of the store keeps it."""
    tasks: "Cache[TaskScore]" = field(default_factory=lambda: Cache(500))
    """By (model, removed layers, fingerprint of the questions)."""
    questions: "Cache[TaskRows]" = field(default_factory=lambda: Cache(4))
    windows: "Cache[WindowSet]" = field(default_factory=lambda: Cache(4))
    wanted_rows: list[int] = field(default_factory=list)
    """Rows of the measured map that people look at now; a running measurement takes them first."""
    base_scores: "Cache[BaseScores]" = field(default_factory=lambda: Cache(2))
    _contexts: "Cache[Asked]" = field(default_factory=lambda: Cache(200))
    _watchers: "Cache[frozenset[str]]" = field(default_factory=lambda: Cache(200))
    """By job: the sessions that may see it, where the app is hosted."""
    _submitting: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.jobs = JobRegistry(queue_limit=settings().max_queue, may_cancel=self._is_own)

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
                policy.check_start(rules, context, live if same is None else (), owner, free_bytes())
                job_id = same or self.jobs.submit(request.kind, title, _timed(work), lane=lane, owner=owner)
            except ShortvizError as error:
                job_id = self.jobs.refuse(request.kind, title, str(error), lane=lane, owner=owner)
            self._contexts.put(job_id, context)
            self._watch(job_id, owner)
            return job_id

    def context(self, job_id: str) -> Asked | None:
        """Return what the job is about; None where this session may not see it."""
        return self._contexts.get(job_id) if self._visible(job_id) else None

    def state(self, job_id: str | None) -> JobState | None:
        """Return how the job stands, or None where there is none that this session may see."""
        return None if job_id is None or not self._visible(job_id) else self.jobs.state(job_id)

    def own_live(self) -> tuple[JobState, ...]:
        """Return the live jobs of this visitor, oldest first; none on one's own machine, where everybody sees all."""
        if not policy.knows_browsers(settings()):
            return ()
        return tuple(job for job in self.jobs.jobs() if job.live and job.owner == self.visitor())

    def inspecting(self, ref: ModelRef | None, block: Block, spec: TextSpec, own: str | None = None) -> str | None:
        """Return the live job that measures this block: this session's `own`, or whichever session began one."""
        for state in sorted(self.jobs.jobs(), key=lambda job: job.id != own):
            about = self._contexts.get(state.id) if state.live and state.kind == EvaluateRequest.kind else None
            asked = about.request if about is not None else None
            wanted = (ref, Removal(block=block), spec)
            if isinstance(asked, EvaluateRequest) and (asked.model, asked.removal, asked.text) == wanted:
                self._watch(state.id, self.visitor())
                return state.id
        return None

    def treating(self, kinds: Collection[str], ref: ModelRef | None, removed: tuple[int, ...]) -> JobState | None:
        """Return the newest job of these kinds that is about this cut, a live one first, whichever session began it."""
        found = None
        for state in self.jobs.jobs():
            about = self._contexts.get(state.id) if state.kind in kinds else None
            if about is None or about.request.model != ref or not self._visible(state.id):  # type: ignore[union-attr]
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

    def _watch(self, job_id: str, owner: str) -> None:
        self._watchers.put(job_id, (self._watchers.get(job_id) or frozenset()) | {owner})

    def _is_own(self, job: JobState) -> bool:
        """Return whether whoever asks may stop the job: on one's own machine, everybody."""
        return not policy.knows_browsers(settings()) or job.owner == self.visitor()

    def _visible(self, job_id: str) -> bool:
        return not policy.knows_browsers(settings()) or self.visitor() in (self._watchers.get(job_id) or ())


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
        """Nothing is saved before there is something to show."""
        yield

    @property
    def keys(self) -> tuple[str, ...]:
        """That which the results go into, and that which is shown."""
        return tuple(dict.fromkeys(key for key in (self._key, self._start) if key is not None))


_INSPECTS = ("estimate", "size", "prepare", "evaluate", "questions", "repair", "bring", "continuations")


def lane_of(request: "Request | AppRequest") -> Lane:
    """Return the lane of the queue that work waits in."""
    return "inspect" if request.kind in _INSPECTS else "long"


def title_of(request: "Request | AppRequest") -> str:
    """Return what a job is called for people."""
    removal = getattr(request, "removal", None)
    cut = f" without layers {layers_text(removal.removed)}" if removal is not None else ""
    about = getattr(request, "model", None)
    return f"{TITLES[request.kind]}{cut} of {about.id}" if about is not None else TITLES[request.kind]


TITLES = {
    "measure": "Distances", "texts": "Distances on several texts", "losses": "Losses", "search": "Search",
    "blocks": "Losses of chosen blocks", "evaluate": "Evaluation", "curve": "Removal curve", "tasks": "Questions",
    "load": "Loading", "prepare": "Preparation", "questions": "Fetching the questions", "estimate": "Estimate",
    "size": "Size", "repair": "Repair", "shrink": "Shrinking", "heal": "Healing", "ask": "Questions for the ledger",
    "bring": "Bringing back a model", "continuations": "Continuations", "export": "Export", "push": "Push",
}  # fmt: skip
