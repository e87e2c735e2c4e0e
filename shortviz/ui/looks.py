"""How the app looks where Streamlit's theme alone cannot say it."""

from typing import Literal

import streamlit as st


def main_button() -> Literal["primary", "secondary"]:
    """Return the type of a page's main button.

    Streamlit 1.67 writes it in white on the primary colour, and a chosen segment in that colour on the page: on a dark
    page no one colour has a contrast of 4.5 in both, so there the main button is told by its place and icon alone.
    """
    return "secondary" if st.context.theme.type == "dark" else "primary"
