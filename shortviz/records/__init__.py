"""The frozen records that travel between stages, their JSON and their words. No torch."""
