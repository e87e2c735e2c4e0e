"""Runs: what was measured before; open one."""

from shortviz.ui.pages import runs, shell

shell.inside(runs.draw)
