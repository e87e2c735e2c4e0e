"""Map: which blocks look redundant, and what removing the chosen one really does."""

from shortviz.ui import frame, map_page

frame.inside(map_page.draw)
