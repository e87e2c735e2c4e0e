"""What the app keeps for the whole process: loaded models, runs, and numbers measured for clicked blocks."""

import gc
import hashlib
import math
import re
import shutil
import sys
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from cachetools import LRUCache

from shortviz import policy, run_library
from shortviz.errors import RunError
from shortviz.progress import Watch
from shortviz.records import Evaluation, ModelRef, Run, TextSpec
from shortviz.runs import (
    EXAMPLES,
    FILE,
    example_run,
    folder_name,
    has_example,
    load_run,
    save_run,
    with_evaluation,
)
from shortviz.settings import settings

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle

EXAMPLE = "example"
"""Key of the bundled run that is shown first."""

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_V = TypeVar("_V")


class Shelf(Generic[_V]):
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
        import shortviz.loading
        import shortviz.losses
        import shortviz.pruning
        import shortviz.texts  # noqa: F401


class ModelShelf:
    """Loaded models, shared by all sessions and never changed; at most two are kept."""

    def __init__(self, limit: int = 2) -> None:
        """Keep at most `limit` models in memory."""
        self._handles: Shelf[ModelHandle] = Shelf(limit)
        self._loading = threading.Lock()

    def get(self, ref: ModelRef) -> "ModelHandle | None":
        """Return the model where it is loaded; starts nothing."""
        return self._handles.get(ref)

    def load(self, ref: ModelRef, watch: Watch) -> "ModelHandle":
        """Return the model, loading it where needed; for background jobs only (torch is imported here)."""
        with self._loading:
            found = self._handles.get(ref)
            if found is not None:
                return found
            watch.tell("start", done=0, total=1, unit="steps", detail="starting the engine")
            import_engine()
            from shortviz.loading import estimate, load

            if settings().is_hosted:
                policy.check_estimate(settings(), estimate(ref))
            return self._handles.put(ref, load(ref, watch=watch))

    def clear(self) -> None:
        """Let go of all models and give a GPU's memory back."""
        self._handles.clear()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


class RunShelf:
    """Runs by key: the bundled one, and the run directories of the app."""

    def __init__(self, folder: Path) -> None:
        """Read and write run directories in `folder`."""
        self.folder = folder
        self._runs: Shelf[Run] = Shelf(64)
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
        own = [folder.name for folder in run_library.folders(self.folder) if _KEY.fullmatch(folder.name)]
        for key in (*own, *EXAMPLES):
            try:
                run = self.get(key)
            except RunError:
                continue
            if run is not None and (not settings().is_hosted or run.text.source.startswith("built-in")):
                found[key] = run
        return found

    def add(self, run: Run) -> str:
        """Keep a run that came from elsewhere, under a key of its own; returns the key."""
        with self._lock:
            key = run_library.free_key(self.folder, folder_name(run))
            self.put(key, run)
        return key

    def rename(self, key: str, name: str) -> None:
        """Give a run of this machine another name."""
        self.update(key, lambda run: run_library.renamed(run, name) if run is not None else None)

    def remove(self, key: str) -> str:
        """Put a run aside; returns what `restore` brings it back by."""
        with self._lock:
            token = run_library.set_aside(self.path(key))
            self._runs.drop(key)
        return token

    def restore(self, token: str) -> str:
        """Bring back a run that was put aside; returns its key, a new one where another run has taken its place."""
        with self._lock:
            return run_library.bring_back(self.folder, token)

    def _make_room(self, newest: str) -> None:
        """Remove the oldest runs where strangers could fill the disk."""
        rules = settings()
        if not rules.is_hosted:
            return
        found = sorted(self.folder.glob(f"*/{FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in found[rules.max_runs :]:
            if old.parent.name != newest:
                shutil.rmtree(old.parent, ignore_errors=True)

    def update(self, key: str, change: Callable[[Run | None], Run | None]) -> None:
        """Put what `change` makes of the run: in one step, for two jobs may add to the same run at once."""
        with self._lock:
            run = change(self.get(key))
            if run is not None:
                self.put(key, run)

    def add_evaluation(self, key: str, evaluation: Evaluation) -> None:
        """Keep a measured block with its run; the best one per block and text stays.

        Where strangers meet, the bundled run is everybody's and stays as it is.
        """
        if self.get(key) is not None and not (key in EXAMPLES and settings().is_hosted):
            self.update(key, lambda run: with_evaluation(run, evaluation) if run is not None else run)


def run_key(ref: ModelRef, spec: TextSpec) -> str:
    """Return the name of the run directory for a model and a calibration text."""
    name = re.sub(r"[^a-z0-9]+", "-", Path(ref.id).name.lower()).strip("-")[:40] or "model"
    facts: list[object] = [ref, spec]
    if spec.kind == "file" and Path(spec.value).is_file():  # changed text is another run
        stat = Path(spec.value).stat()
        facts += [stat.st_size, stat.st_mtime_ns]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:10]
    return f"{name}-{digest}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What is known about a clicked block so far."""

    evaluation: Evaluation | None = None
    prompt: str = ""
    uncut: str = ""
    """The uncut model's continuation of the prompt, as far as it is written."""
    cut: str = ""
