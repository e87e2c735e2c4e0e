"""The app of a checkout, for `streamlit run app.py`; `shortviz app` runs the same script of the package."""

from shortviz.ui.pages.shell import show

show()
