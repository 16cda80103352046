"""Tensors to features: one file a backbone, found by its file name."""
