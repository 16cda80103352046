"""The simulated chest: computed tomography in Hounsfield units, a thorax of shapes and trees, and eighteen findings."""
