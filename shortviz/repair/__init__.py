"""Repair after a cut: the layer before the seam refitted by least squares, and trained for a minute if asked."""
