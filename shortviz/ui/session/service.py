"""The one bench of a process, as the sessions of the app share it."""

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from shortviz.service.service import RunStore, Service
from shortviz.settings import settings
from shortviz.ui.session import state
from shortviz.ui.session import state as s


def _visitor() -> str:
    """Return the secret name of the session whose script this is; "" outside of one."""
    return state.owner(s.session()) if get_script_run_ctx(suppress_warning=True) is not None else ""


@st.cache_resource(show_spinner=False, on_release=Service.close)
def bench() -> Service:
    """Return the bench of this process."""
    return Service(runs=RunStore(settings().runs_dir), visitor=_visitor)
