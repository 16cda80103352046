"""One file per public data set layout; a layout is found by its file name."""
