"""Magnetic resonance imaging: sampling masks, coils, complex phantoms, simulated and stored k-space."""
