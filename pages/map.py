"""Map: which blocks look redundant, and what removing the chosen one really does."""

from shortviz.ui.pages import map as map_page
from shortviz.ui.pages import shell

shell.inside(map_page.draw)
