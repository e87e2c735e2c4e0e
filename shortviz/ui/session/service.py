"""The one service of a process, which all sessions of the app share: loaded models, runs, the queue of jobs."""

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from shortviz.service.execute import new_service
from shortviz.service.requests import AppRequest, Request
from shortviz.service.service import Service
from shortviz.ui.session import opened
from shortviz.ui.session import state as s


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
