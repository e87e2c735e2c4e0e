"""Export: write the cut model as a stock checkpoint, and prove it before the word done."""

from shortviz.ui.pages import export, shell

shell.inside(export.draw)
