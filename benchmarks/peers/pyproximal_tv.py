"""Total-variation denoising by pyproximal: the proximal map ``TV`` (FISTA on the dual) and ``PrimalDual``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["TAUS", "available", "denoise_fista", "denoise_primal_dual"]

TAUS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Primal steps of PrimalDual; mu = 0.99/(8 tau). The proximal map has no step size."""


def available() -> str:
    """Empty, or why pyproximal cannot be called."""
    try:
        import pyproximal  # noqa: F401
    except ImportError as error:
        return f"pyproximal: {error}"
    return ""


def denoise_fista(
    b: np.ndarray, weight: float, iterations: int, callback: Callable[[np.ndarray], None] | None = None
) -> np.ndarray:
    """``iterations`` steps of the proximal map of weight TV at b. ``callback`` sees every iterate, the first after no
    step: the map evaluates its objective at each, and a subclass listens there."""
    from pyproximal import TV

    class Listening(TV):
        def __call__(self, x: np.ndarray) -> float:
            if callback is not None:
                callback(x)
            return float(super().__call__(x))

    kind = TV if callback is None else Listening
    return np.asarray(kind(b.shape, sigma=weight, niter=iterations, rtol=0.0).prox(b.ravel(), 1.0)).reshape(b.shape)


def denoise_primal_dual(
    b: np.ndarray,
    weight: float,
    iterations: int,
    tau: float,
    callback: Callable[[np.ndarray], None] | None = None,
) -> np.ndarray:
    """``iterations`` steps of PrimalDual on ½‖x - b‖² + weight TV(x) from x = b; ``callback`` sees every x."""
    import pylops
    import pyproximal

    gradient = pylops.Gradient(b.shape, edge=False, kind="forward", dtype=b.dtype)
    watch = None if callback is None else lambda x: callback(x.reshape(b.shape))
    x = pyproximal.optimization.primaldual.PrimalDual(
        pyproximal.L2(b=b.ravel()),
        pyproximal.L21(ndim=2, sigma=weight),
        gradient,
        x0=b.ravel().copy(),
        tau=tau,
        mu=0.99 / (8.0 * tau),
        niter=iterations,
        callback=watch,
    )
    return np.asarray(x).reshape(b.shape)
