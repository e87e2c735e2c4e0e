"""Where a request's results go: a run directory that a person named, or a run of the app's store."""

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from shortviz.errors import ResourceError, RunError, ShortvizError, Stopped
from shortviz.records.model import ModelInfo, ModelRef
from shortviz.records.run import Run
from shortviz.records.text import TextSpec
from shortviz.runs.run import FILE, load_run, save_run
from shortviz.service import policy
from shortviz.settings import settings


class Place:
    """A run directory, or memory alone where none was named."""

    replaces = False
    """Whether a complete map may be replaced by one on other text."""
    other_text = "give the map's own, or another folder to write to, to measure another map"
    """What to do where the run's map is on other text than was asked for."""

    def __init__(self, folder: Path | None, start: Run | None = None) -> None:
        """Keep the run in `folder`, which may be there already; one that is new begins as `start`."""
        self.folder = folder
        self._run = start

    @property
    def name(self) -> str:
        """What the run is found by."""
        return str(self.folder)

    @property
    def run(self) -> Run | None:
        """The run as it is now; raises RunError where the folder's cannot be read."""
        start = self._run
        if self.folder is None or not (self.folder / FILE).is_file():
            return start
        own = load_run(self.folder)
        if start is None or start.distances is None or own.distances is not None:
            return own
        return replace(own, distances=start.distances, text=start.text)

    def part(self, name: str, model: ModelRef, text: TextSpec) -> "Place":
        """Return where one of several texts is kept, `name` for people."""
        return Place(self.folder / name if self.folder is not None else None)

    def update(self, change: Callable[[Run | None], Run]) -> Run:
        """Keep what `change` makes of the run."""
        self._run = run = change(self.run)
        if self.folder is not None:
            save_run(run, self.folder)
        return run

    token = ""
    """What opens the hub, where something goes there; it stands in no record."""
    export: Path | None = None
    """Where the model that is made is to be written too: it must find room there."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Runs of the app's store that keep models: that which the results go into, and that which is shown."""
        return ()

    work: Path | None = None
    """Where the unfinished work that was begun last is kept."""

    def finished(self, work: Path) -> None:
        """Remove what unfinished work was kept in: it is done."""
        work.unlink(missing_ok=True)

    def check_model(self, model: str) -> None:
        """Raise RunError where the run that is here is of another model."""
        run = self.run
        if run is not None and run.model.id != model:
            raise RunError(f"{self.folder} holds a run of {run.model.id}, not of {model}; choose another folder.")

    @contextmanager
    def begun(self, run: Run) -> Iterator[None]:
        """Save a run that is to be measured; where its text or criterion is refused, leave nothing new behind.

        Raises RunError where the folder holds something else, ResourceError where it cannot be written.
        """
        folder = self.folder
        if folder is None:
            yield
            return
        new_folder, new_run = not folder.exists(), not (folder / FILE).exists()
        save_run(run, folder)
        try:
            yield
        except Stopped:
            raise
        except ShortvizError:
            # Whatever was measured before the refusal stands in files beside the run, and then it stays.
            if new_run and [entry.name for entry in folder.iterdir()] == [FILE]:
                (folder / FILE).unlink()
                if new_folder:
                    folder.rmdir()
            raise

    @contextmanager
    def checkpoint(self, kind: str, info: ModelInfo, *facts: object, rank: int = 0) -> Iterator[Path | None]:
        """Yield where work is kept while it is `unfinished`; None where the run itself is not kept.

        None too while another process is at the very same work: it keeps it.
        """
        if self.folder is None:
            yield None
            return
        path = unfinished(kind, info, *facts)
        with alone_at(path, rank) as alone:
            yield path if alone else None

    @contextmanager
    def claimed(self, run: Run) -> Iterator[Run]:
        """Yield the run without distances, saved, with all that the place's run has but those; see `begun`."""
        old = self.run or run
        mine = replace(old, model=run.model, text=run.text, versions=run.versions, created=run.created, distances=None)
        with self.begun(replace(mine, distances=old.distances)):
            yield mine


class WrittenPlace(Place):
    """A place whose results are written elsewhere too: until they are, no finished work is removed."""

    def __init__(self, folder: Path | None, export: Path | None = None) -> None:
        """Keep the run in `folder`; the model is to be written to `export`."""
        super().__init__(folder)
        self.export = export
        self._held: list[Path] = []

    def finished(self, work: Path) -> None:
        """Hold what the work was kept in until `release`."""
        self._held.append(work)

    def release(self) -> None:
        """Remove what was held: all that was made of it is written."""
        while self._held:
            super().finished(self._held.pop())


def unfinished(kind: str, info: ModelInfo, *facts: object, suffix: str = ".npz") -> Path:
    """Return where work that was stopped is kept until it is done: by what it is, whoever began it, and wherever.

    The app goes on from what the command line began, and the other way round.
    """
    about = (kind, info.id, info.revision, info.dtype, info.num_layers, info.parameters, *facts)
    name = hashlib.sha256(repr(about).encode()).hexdigest()[:20]
    folder = settings().runs_dir / "unfinished"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"Unfinished work cannot be kept in {folder} ({error.strerror}); set SHORTVIZ_RUNS_DIR to a folder that "
            "can be written."
        ) from error
    _make_room(folder)
    return folder / f"{kind}-{name}{suffix}"


@contextmanager
def alone_at(work: Path, rank: int = 0) -> Iterator[bool]:
    """Yield whether nobody else is at this unfinished work, and keep others out; each `rank` has its own part."""
    lock = FileLock(work.with_suffix(f".lock{rank}"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _make_room(folder: Path) -> None:
    """Remove unfinished work that nobody has touched for long; where strangers share the disk, what is too much."""
    works: dict[str, list[tuple[float, int, Path]]] = defaultdict(list)
    for file in folder.iterdir():
        with suppress(OSError):  # it went meanwhile: its work is done
            if ".lock" not in file.suffix and file.suffix != ".tmp":
                stat = file.stat()
                works[file.stem].append((stat.st_mtime, stat.st_size, file))
    most_bytes, most_seconds = policy.most_unfinished(settings())
    taken, oldest = 0, time.time() - most_seconds
    for files in sorted(works.values(), key=max, reverse=True):
        taken += sum(size for _, size, _ in files)
        if max(files)[0] < oldest or taken > most_bytes:
            for _, _, file in files:
                with suppress(OSError):
                    file.unlink()
