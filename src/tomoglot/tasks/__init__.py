"""Checkpoint to scores: one file a task, and the statistics that every score carries.

A task is a file here that says its `VERB`. What tasks share lies below: `heads` is what is fitted on an encoder,
`queries` what is asked in words, `maps` where a model looked, `scores` how predictions become numbers with intervals.
"""
