"""How far long work is, and whether it should stop."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from shortviz.errors import Stopped


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a long function stands; told to its `Watch` at least once a batch."""

    stage: str
    """A word for people: `download`, `load`, `measure`, `evaluate`, `write`, `prove`, ..."""
    done: float
    total: float
    unit: str
    """What is counted: `rows`, `windows`, `bytes`, `steps`."""
    detail: str = ""
    snapshot: Callable[[], Any] | None = None
    """Builds the partial record (BlockDistances, Evaluation) on demand; call it from the callback only."""


OnProgress = Callable[[Progress], None]
NOTE: Final = "note"
"""The stage of a Progress that only says something."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Who waits for a long function: `on_progress` is called with every Progress, and setting `stop` ends the work.

    A function that has something to keep when it hears the stop returns that; any other raises Stopped.
    """

    on_progress: OnProgress | None = None
    stop: threading.Event | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop was asked for."""
        return self.stop is not None and self.stop.is_set()

    def check(self, sentence: str) -> None:
        """Raise Stopped where a stop was asked for; the sentence says what was stopped, and what is left of it."""
        if self.stopped:
            raise Stopped(sentence)

    def tell(
        self, stage: str, *, done: float, total: float, unit: str, detail: str = "",
        snapshot: Callable[[], Any] | None = None,
    ) -> None:  # fmt: skip
        """Report where the work stands; the fields are those of Progress."""
        self.report(Progress(stage=stage, done=done, total=total, unit=unit, detail=detail, snapshot=snapshot))

    def say(self, sentence: str) -> None:
        """Tell people something on the way; it is no step of the work."""
        self.tell(NOTE, done=0, total=0, unit="", detail=sentence)

    def report(self, progress: Progress) -> None:
        """Pass a Progress on."""
        if self.on_progress is not None:
            self.on_progress(progress)

    def mapped(self, change: Callable[[Progress], Progress]) -> "Watch":
        """Return the watch of a part of the work, whose progress is told as the whole's: `change` makes it so."""
        return Watch(lambda step: self.report(step if step.stage == NOTE else change(step)), self.stop)

    def labelled(self, **fields: Any) -> "Watch":
        """Return the watch of a part of the work, these fields of whose progress say what part it is."""
        return self.mapped(lambda progress: replace(progress, **fields))


NO_WATCH: Final = Watch()
"""Nobody waits: nothing is told anybody, and no stop comes."""
