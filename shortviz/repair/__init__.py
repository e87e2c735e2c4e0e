"""Repair after a cut, in closed form: the layer before the seam refitted by least squares, nothing trained."""
