"""The script that serves strangers, in place of app.py: the app behind the host guard, with sign-in if there is any."""

import streamlit as st
from starlette.middleware import Middleware

from shortviz.server.guard import HostGuard
from shortviz.server.start import auth_secrets, can_sign_in, host_names
from shortviz.settings import settings

rules = settings()
app = st.App(
    "app.py",
    secrets=auth_secrets(rules) if can_sign_in(rules) else None,
    middleware=[Middleware(HostGuard, hosts=host_names(rules))],
)
