"""Model: which model, on which text, and what that costs before anything large is read."""

from shortviz.ui import frame, model_page

frame.inside(model_page.draw)
