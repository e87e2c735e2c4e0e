"""The one bench of a process, as the sessions of the app share it."""

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from shortviz.settings import settings
from shortviz.ui import state as s
from shortviz.ui import visit
from shortviz.ui.resources import Bench
from shortviz.ui.shelves import RunShelf


def _visitor() -> str:
    """Return the secret name of the session whose script this is; "" outside of one."""
    return visit.owner(s.session()) if get_script_run_ctx(suppress_warning=True) is not None else ""


@st.cache_resource(show_spinner=False, on_release=Bench.close)
def bench() -> Bench:
    """Return the bench of this process."""
    return Bench(runs=RunShelf(settings().runs_dir), visitor=_visitor)
