"""What turns predictions into numbers with intervals: metrics of voxels, findings, ranks and texts, and their tests."""
