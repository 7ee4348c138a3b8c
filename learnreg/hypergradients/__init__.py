"""Hypergradients: one file per method, one driver that lets the certificate set the tolerances."""
