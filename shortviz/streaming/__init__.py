"""Models larger than memory: distances, losses, export and proof, one layer in memory at a time."""
