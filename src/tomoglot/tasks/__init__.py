"""Checkpoint to scores: one file a task, and the statistics that every score carries."""
