"""Simulated cohorts: real anatomy, physics of the scanner, lesions, reports and ground truth."""
