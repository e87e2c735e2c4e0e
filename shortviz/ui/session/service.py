"""The one service of a process, which all sessions share: how a page starts work there and follows it while it runs.

Torch and transformers, imported once per process in the background, take most of the time of the first load. The page
must not notice: nothing starts before the browser has had time to draw, and a person who clicks puts it off.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from shortviz.service.execute import new_service
from shortviz.service.kept import import_engine
from shortviz.service.queue import JobState
from shortviz.service.requests import AppRequest, Request
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.ui.session import opened
from shortviz.ui.session import state as s

QUIET_SECONDS: Final = 2.5
"""Since a page's script ran last: by then its chart is drawn."""


def _visitor() -> str:
    """Return the secret name of the session whose script this is; "" outside of one."""
    return s.owner(s.session()) if get_script_run_ctx(suppress_warning=True) is not None else ""


@st.cache_resource(show_spinner=False, on_release=Service.close)
def bench() -> Service:
    """Return the bench of this process."""
    return new_service(visitor=_visitor)


def start_job(request: Request | AppRequest, *, key: str | None = None, start: str | None = None) -> None:
    """Put work into the queue, as this session's newest of its kind; see `Service.submit`."""
    state = s.session()
    if key is not None and key == s.run_key(state):
        key = opened.own_copy(bench(), state, key)
    s.set_job(state, request.kind, bench().submit(request, key=key, start=start))


# A part of a page that follows a job: drawn again and again while it runs, and the whole page once it has ended.


def follow(tools: Service, first: JobState | None, draw: Callable[[JobState | None], None], *, seconds: float) -> None:
    """Call `draw` with how a job stands now, every so many seconds while it runs; None where there is no job.

    `first` is the job as the rest of the page was drawn with: where it has ended since, the page is drawn anew.
    """
    live = first is not None and first.live

    @st.fragment(run_every=seconds if live else None)
    def following() -> None:
        job = tools.state(first.id) if first is not None else None
        if live and (job is None or not job.live):
            st.rerun()
        draw(job)

    following()


# Torch, imported before anybody needs it.


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
