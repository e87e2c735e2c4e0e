"""Export: write the cut model as a stock checkpoint, and prove it before the word done."""

from shortviz.ui import export_page, frame

frame.inside(export_page.draw)
