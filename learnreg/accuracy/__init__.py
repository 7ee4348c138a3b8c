"""Certified bounds beside true errors: ``learnreg accuracy``."""
