"""Heal: what a cut lost, what repair and training won back, and both as buttons."""

from shortviz.ui import frame, heal_page

frame.inside(heal_page.draw)
