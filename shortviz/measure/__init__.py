"""Distances, losses, the measured map, search, questions, and the text a model writes."""
