"""Learn: what layer redundancy is, one idea and one picture at a time."""

from shortviz.ui import frame, learn_page

frame.inside(learn_page.draw)
