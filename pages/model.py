"""Placeholder until its screen is drawn."""
