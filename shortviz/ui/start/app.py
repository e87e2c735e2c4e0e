"""The script that Streamlit runs on one's own machine."""

from shortviz.ui.pages.shell import show

show()
