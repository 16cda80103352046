"""Curated studies on disk: written once, read by crops, checked to the bit."""
