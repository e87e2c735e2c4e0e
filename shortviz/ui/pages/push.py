"""Pushing an exported checkpoint to the hub from the Export page: the token lives in the session and nowhere else."""

from pathlib import Path
from typing import Any

import streamlit as st

from shortviz.records.formatting import duration, size
from shortviz.server.start import can_sign_in
from shortviz.service.execute import execute
from shortviz.service.place import Place
from shortviz.service.queue import JobState
from shortviz.service.requests import PushRequest
from shortviz.service.service import Asked, Service
from shortviz.settings import settings
from shortviz.ui.parts import notes
from shortviz.ui.parts.notes import main_button, plain
from shortviz.ui.session import state as s
from shortviz.ui.session.service import follow

TICK_SECONDS = 0.5
_HELP = (
    "A fine-grained token with write access, from your account's settings on the hub. It is used for this push, kept "
    "in this session only, and never written anywhere."
)


def draw(tools: Service, folder: Path) -> None:
    """Draw the form and, while a push runs or has ended, how it stands."""
    state = s.session()
    first = tools.state(s.job(state, "push"))
    live = first is not None and first.live
    st.subheader("Push to the Hugging Face hub")
    st.caption("The card goes along. Only a checkpoint that is still exactly what was proved is pushed, in one commit.")
    signed_in = _sign_in()
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.text_input(
            "Repository", key=s.REPOSITORY, placeholder=f"you/{folder.name}", max_chars=96, persist_state="session"
        )
        st.toggle("Private", value=True, key=s.PRIVATE, persist_state="session")
    if signed_in is None:
        st.text_input("Token", type="password", key=s.TOKEN, max_chars=300, help=_HELP, autocomplete="off")
    with st.container(horizontal=True, gap="small"):
        st.button(
            "Push", icon=":material/cloud_upload:", type=main_button(), disabled=live, on_click=_push,
            args=(tools, folder), key="push_button", help=notes.why_off(False, live) or None,
        )  # fmt: skip
        notes.cancel_button(tools, first, "Nothing is being pushed: there is nothing to cancel.", key="cancel_push")
    follow(tools, first, _told, seconds=TICK_SECONDS)


def _told(job: JobState | None) -> None:
    if job is None:
        return
    if job.live:
        notes.job_progress(job)
    notes.job_error(job)
    if job.state == "cancelled":
        st.caption("Stopped. The repository is as it was; what has arrived is not sent again.")
    report = job.result
    if job.state == "done" and report is not None:
        st.success(
            f"Pushed {report.files} files, {size(report.bytes)}, in {duration(report.seconds)}: {plain(report.url)}",
            icon=":material/cloud_done:",
        )
        st.link_button("Open it on the hub", report.url, icon=":material/open_in_new:")


def _push(tools: Service, folder: Path) -> None:
    state, place = s.session(), Place(None)
    asked = PushRequest(
        folder=str(folder), repo_id=str(state.get(s.REPOSITORY, "")).strip() or folder.name,
        private=bool(state.get(s.PRIVATE, True)),
    )  # fmt: skip
    place.token = access_token() or str(state.get(s.TOKEN, ""))  # in the work alone: it goes with it
    job_id = tools.run(Asked(request=asked), lambda watch: execute(asked, watch, service=tools, place=place))
    s.set_job(state, asked.kind, job_id)


def _sign_in() -> str | None:
    """Offer to sign in where this installation can; return the name of who has, or None."""
    if not can_sign_in(settings()):
        return None
    if access_token():
        name = str(getattr(st.user, "name", "") or "you")
        st.caption(f":material/account_circle: Signed in as {plain(name)}.")
        return name
    with st.container(horizontal=True, gap="small"):
        st.button("Sign in with Hugging Face", icon=":material/login:", on_click=st.login, key="sign_in")
        if settings().public_host:  # inside the hub's page the sign-in is blocked by the frame's sandbox
            st.link_button("Open full page to sign in", f"https://{settings().public_host}/export")
    st.caption("Or paste a token.")
    return None


def access_token() -> str:
    """Return the token of who has signed in, or "" where nobody has or this installation has no sign-in."""
    if not getattr(st.user, "is_logged_in", False):
        return ""
    tokens: Any = getattr(st.user, "tokens", None) or {}
    return str(tokens.get("access", "") if hasattr(tokens, "get") else "")
