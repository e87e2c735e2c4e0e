"""Heal: what a cut lost, what repair and training won back, and both as buttons."""

from shortviz.ui.pages import heal, shell

shell.inside(heal.draw)
