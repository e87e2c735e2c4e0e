"""Export: write the cut model as a stock checkpoint, and prove it before the word done."""

from shortviz.ui import export_page

export_page.draw()
