"""Denoising by BM3D, block matching and collaborative filtering, as its authors publish it on PyPI."""

from __future__ import annotations

import importlib.util

import numpy as np

__all__ = ["available", "denoise"]


def available() -> str:
    """Empty, or why bm3d cannot be called."""
    return "" if importlib.util.find_spec("bm3d") else "bm3d is not installed (its licence is for non-commercial use)"


def denoise(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """The image (height, width); the defaults, both stages."""
    import bm3d

    return np.asarray(bm3d.bm3d(noisy, sigma_psd=sigma))
