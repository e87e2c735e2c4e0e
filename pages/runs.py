"""Runs: what was measured before; open one."""

from shortviz.ui import runs_page

runs_page.draw()
