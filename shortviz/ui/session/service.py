"""The one bench of a process, as the sessions of the app share it."""

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from shortviz.service.execute import new_service
from shortviz.service.requests import AppRequest, Request
from shortviz.service.service import Service
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
    s.set_job(s.session(), request.kind, bench().submit(request, key=key, start=start))
