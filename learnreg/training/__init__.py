"""Training: datasets to run folders, on top of the core."""
