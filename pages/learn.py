"""Learn: what layer redundancy is, one idea and one picture at a time."""

from shortviz.ui.pages import learn, shell

shell.inside(learn.draw)
