"""The app with sign-in: `shortviz app` serves it in place of app.py where a Space gives OAuth credentials."""

import streamlit as st

from shortviz.settings import settings
from shortviz.ui.sign_in import auth_secrets

app = st.App("app.py", secrets=auth_secrets(settings()))
