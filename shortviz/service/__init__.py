"""Requests and what carries them out: jobs, loaded models, runs, and what a hosted installation allows."""
