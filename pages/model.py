"""Model: which model, on which text, and what that costs before anything large is read."""

from shortviz.ui.pages import model, shell

shell.inside(model.draw)
