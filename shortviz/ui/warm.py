"""While a person reads the first page, torch and transformers are imported in the background, once per process.

They take most of the time of the first load. The page must not notice: nothing starts before the browser has had time
to draw, and a person who clicks puts it off.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from streamlit import runtime

from shortviz.settings import settings
from shortviz.ui.shelves import import_engine

QUIET_SECONDS: Final = 2.5
"""Since a page's script ran last: by then its chart is drawn."""


class Warmth:
    """Does some work once, as soon as no page has been asked for during `quiet_seconds`."""

    def __init__(self, work: Callable[[], None], *, quiet_seconds: float) -> None:
        """Nothing happens before a page was drawn."""
        self._work = work
        self._quiet_seconds = quiet_seconds
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._last = 0.0

    def page_was_drawn(self) -> None:
        """Begin to wait for a quiet moment, or wait on."""
        with self._lock:
            self._last = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._wait_and_work, name="shortviz-warm", daemon=True)
                self._thread.start()

    def _wait_and_work(self) -> None:
        while (left := self._last + self._quiet_seconds - time.monotonic()) > 0:
            time.sleep(left)
        self._work()


_warmth = Warmth(import_engine, quiet_seconds=QUIET_SECONDS)


def page_was_drawn() -> None:
    """Import the engine soon, where this is a server; a script that runs without one (a test) stays light.

    AppTest puts a stand-in that claims to be one in the server's place; a thread that imports would race with the test.
    """
    if settings().preload and runtime.exists() and type(runtime.get_instance()) is runtime.Runtime:
        _warmth.page_was_drawn()
