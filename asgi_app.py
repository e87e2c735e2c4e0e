"""The hosted app, served by `shortviz app` in place of app.py: behind the doorkeeper, with sign-in if there is any."""

import streamlit as st
from starlette.middleware import Middleware

from shortviz.doorkeeper import Doorkeeper
from shortviz.hosting import can_sign_in, host_names
from shortviz.settings import settings
from shortviz.ui.sign_in import auth_secrets

rules = settings()
app = st.App(
    "app.py",
    secrets=auth_secrets(rules) if can_sign_in(rules) else None,
    middleware=[Middleware(Doorkeeper, hosts=host_names(rules))],
)
