"""Total-variation denoising by ODL: ``odl.solvers.pdhg``, with constant steps or with its acceleration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["GAMMAS", "TAUS", "available", "denoise"]

TAUS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Primal steps, or where they start; sigma = 0.99/(8 tau)."""
GAMMAS = (0.0, 0.1, 1.0)
"""Acceleration; 0 keeps the steps constant, 1 is the modulus of strong convexity."""


def available() -> str:
    """Empty, or why ODL cannot be called."""
    try:
        import odl  # noqa: F401
    except ImportError as error:
        return f"odl: {error}"
    return ""


def denoise(
    b: np.ndarray,
    weight: float,
    iterations: int,
    tau: float,
    gamma: float = 0.0,
    callback: Callable[[Any], None] | None = None,
) -> np.ndarray:
    """``iterations`` steps of PDHG on ½‖x - b‖² + weight TV(x) from x = b; ``callback`` sees every x."""
    import odl

    height, width = b.shape
    space = odl.uniform_discr([0, 0], [height, width], [height, width], dtype=str(b.dtype))
    gradient = odl.Gradient(space, method="forward", pad_mode="symmetric")
    data_term = 0.5 * odl.functionals.L2NormSquared(space).translated(space.element(b))
    total_variation = weight * odl.functionals.GroupL1Norm(gradient.range)
    x = space.element(b.copy())
    watch = None if callback is None else lambda element: callback(element.asarray())
    odl.solvers.pdhg(
        x,
        data_term,
        total_variation,
        gradient,
        niter=iterations,
        tau=tau,
        sigma=0.99 / (8.0 * tau),
        gamma_primal=gamma if gamma > 0 else None,
        callback=watch,
    )
    return np.asarray(x.asarray())
