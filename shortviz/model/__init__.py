"""From a name to a live model: its files, its layers, its config, and the same model with fewer layers."""
