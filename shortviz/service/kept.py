"""Models that are kept: loaded ones in memory, and treated ones beside their run, to be put on the uncut model again.

No streamlit is called in here, for jobs use it; what needs torch is imported by the functions.
"""

import gc
import hashlib
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from cachetools import LRUCache

from shortviz.errors import ExportError, ResourceError, RunError
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import size
from shortviz.records.json import plain
from shortviz.records.ledger import LedgerStep
from shortviz.records.model import ModelEstimate, ModelRef
from shortviz.service import policy
from shortviz.settings import settings

if TYPE_CHECKING:
    from shortviz.heal.adapter import Adapter
    from shortviz.heal.heal import Healed
    from shortviz.model.handle import ModelHandle
    from shortviz.model.load import ResolvedModel
    from shortviz.service.service import Service


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

            found_size = resolved.estimate
            watch.say(found_size.words)
            policy.check_estimate(settings(), found_size)
            if fits is not None:
                fits(found_size.num_layers)
            self._resolved.drop(ref)
            return self._handles.put(ref, load(resolved, watch=watch))

    def clear(self) -> None:
        """Let go of all models and give a GPU's memory back."""
        self._handles.clear()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


# Treated models.

_WEIGHTS, _ADAPTER = "weights.safetensors", "adapter"


def place(service: "Service", key: str, removed: tuple[int, ...], methods: tuple[str, ...]) -> Path:
    """Return the folder beside a run in which a treated model's own weights are kept."""
    name = hashlib.sha256(repr((removed, methods)).encode()).hexdigest()[:12]
    return service.runs.path(key) / f"treated-{name}"


def is_kept(service: "Service", key: str | None, removed: tuple[int, ...], methods: tuple[str, ...]) -> bool:
    """Return whether a treated model can be brought back without repairing or training."""
    return key is not None and (place(service, key, removed, methods) / _WEIGHTS).is_file()


def kept_by(service: "Service", keys: Sequence[str], removed: tuple[int, ...], methods: tuple[str, ...]) -> str | None:
    """Return the first of some runs that a treated model is kept beside, or None."""
    return next((key for key in keys if is_kept(service, key, removed, methods)), None)


def has_adapter(service: "Service", key: str | None, removed: tuple[int, ...], methods: tuple[str, ...]) -> bool:
    """Return whether what a model learned last is kept as an adapter of its own."""
    return key is not None and (place(service, key, removed, methods) / _ADAPTER).is_dir()


def put_in_memory(
    service: "Service", ref: ModelRef, removed: tuple[int, ...], base: "ModelHandle", model: "ModelHandle"
) -> str:
    """Keep a treated model in memory; return why not, in a sentence, where it is too large for that."""
    from shortviz.model.delta import delta_weights

    key, own = (ref, removed, model.methods), sum(weight.nbytes for weight in delta_weights(model, base).values())
    service.treated.put(key, model, own)
    if service.treated.get(key) is not None:
        return ""
    return (
        f"{size(own)} of this model are its own, and this installation keeps {settings().max_treated_mb} MB of such "
        "models in memory, so it was measured but can be neither exported nor continue prompts."
    )


def keep(service: "Service", key: str, base: "ModelHandle", model: "ModelHandle", healed: "Healed | None") -> str:
    """Write what is a treated model's own beside its run; return why not, in a sentence, where that is not possible.

    Of adapters the small factors are written, and the model that they were trained on where it was repaired. A kill
    leaves what was there before whole: the run's ledger still shows that.
    """
    from shortviz.export.folder import filled_beside, folder_bytes, move_into_place
    from shortviz.heal.adapter import export_adapter
    from shortviz.model.delta import save_treated

    folder = place(service, key, model.removed, model.methods)
    try:
        with filled_beside(folder) as room:
            made = room / "treated"
            made.mkdir()
            if healed is not None and healed.adapter is not None:
                export_adapter(healed.adapter, made / _ADAPTER)
                model = healed.adapter.cut
            save_treated(made / _WEIGHTS, model, base, {})
            _make_room(service, folder, folder_bytes(made))
            shutil.rmtree(folder, ignore_errors=True)
            move_into_place(made, folder)
    except (ResourceError, ExportError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        return f"The model could not be kept beside its run ({error}), so it will be gone when the server ends."
    return ""


def _make_room(service: "Service", folder: Path, needed: int) -> None:
    """Remove the models kept longest ago where the app is hosted, until another one finds room beside them.

    Raises ResourceError where it is too large by itself.
    """
    from shortviz.export.folder import folder_bytes

    most = policy.kept_bytes(settings())
    if needed > most:
        raise ResourceError(f"it takes {size(needed)}, and this installation keeps {settings().max_kept_mb} MB")
    others = [each for each in service.runs.folder.glob("*/treated-*") if each != folder]
    newest = sorted(others, key=lambda each: -each.stat().st_mtime)
    for each in newest:
        needed += folder_bytes(each)
        if needed > most:
            shutil.rmtree(each, ignore_errors=True)


def bring_back(
    service: "Service", key: str, base: "ModelHandle", removed: tuple[int, ...], step: LedgerStep
) -> "ModelHandle":
    """Return the very model of a ledger's step, from what is kept beside the run.

    Raises RunError where nothing is kept, it cannot be read, or it is not the model that the ledger shows.
    """
    found = _start(service, key, base, removed, step.methods)
    folder = place(service, key, removed, step.methods) / _ADAPTER
    if folder.is_dir():
        from shortviz.heal.adapter import load_adapter

        found = load_adapter(found, folder)
    if plain(found.treatments) != plain(step.treatments):
        raise RunError("What is kept beside the run is not the model that the ledger shows; repair or heal again.")
    return found


def adapter(
    service: "Service", key: str, base: "ModelHandle", removed: tuple[int, ...], methods: tuple[str, ...]
) -> "Adapter":
    """Return what a healed model learned, alone; raises RunError where that is not kept."""
    from shortviz.heal.adapter import read_adapter

    start = _start(service, key, base, removed, methods)
    return read_adapter(start, place(service, key, removed, methods) / _ADAPTER)


def _start(
    service: "Service", key: str, base: "ModelHandle", removed: tuple[int, ...], methods: tuple[str, ...]
) -> "ModelHandle":
    from shortviz.model.delta import load_treated

    found = load_treated(place(service, key, removed, methods) / _WEIGHTS, base)
    if found is None:
        raise RunError("Nothing of this model is kept beside the run; repair or heal again.")
    return found[0]
