"""Photographs and noisy patches of them."""
