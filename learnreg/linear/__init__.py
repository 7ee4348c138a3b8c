"""Linear operators on batched tensors, bounds of their norms, and arithmetic of samples."""
