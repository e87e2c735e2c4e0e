"""Map: which blocks look redundant, and what removing the chosen one really does."""

from shortviz.ui import map_page

map_page.draw()
