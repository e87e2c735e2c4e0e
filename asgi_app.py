"""The hosted app, served by `shortviz app` in place of app.py: behind the host guard, with sign-in if there is any."""

import streamlit as st
from starlette.middleware import Middleware

from shortviz.doorkeeper import HostGuard
from shortviz.hosting import can_sign_in, host_names
from shortviz.settings import settings
from shortviz.ui.sign_in import auth_secrets

rules = settings()
app = st.App(
    "app.py",
    secrets=auth_secrets(rules) if can_sign_in(rules) else None,
    middleware=[Middleware(HostGuard, hosts=host_names(rules))],
)
