"""Model: which model, on which text, and what that costs before anything large is read."""

from shortviz.ui import model_page

model_page.draw()
