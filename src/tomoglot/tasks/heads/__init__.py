"""What is fitted on top of an encoder: probes, detectors, segmenters, writers, and how a fitted one is kept."""
