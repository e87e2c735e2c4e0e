"""The app on one's own machine."""

from shortviz.ui.pages.shell import show

show()
