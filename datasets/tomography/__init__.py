"""Phantoms, measurements and data sets of computed tomography."""
