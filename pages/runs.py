"""Runs: what was measured before; open one."""

from shortviz.ui import frame, runs_page

frame.inside(runs_page.draw)
