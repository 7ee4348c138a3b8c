"""X-ray projectors, their geometries and matrices, and filtered back-projection."""
