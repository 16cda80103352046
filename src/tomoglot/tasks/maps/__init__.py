"""Where a model looked: heat maps of an answer, on the native grid, against the lesion masks."""
