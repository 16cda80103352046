"""Predictions to people: reports, pages and exports."""
