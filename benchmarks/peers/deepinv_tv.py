"""Total-variation denoising by deepinv: ``TVDenoiser``, over-relaxed Chambolle-Pock, behind ``TVPrior.prox``."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch

__all__ = ["RHOS", "TAUS", "available", "denoise"]

TAUS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Primal steps; 0.01 is its default, sigma = 1/(8 tau) is fixed inside."""
RHOS = (1.9, 1.99)
"""Relaxation; 1.99 is its default."""


class _Placeholder(ModuleType):
    """Stands in for torchvision: importing deepinv names a few of its classes, TVDenoiser uses none."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class _Placeholders(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds torchvision and its submodules, empty."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        wanted = fullname.split(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if wanted else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def available() -> str:
    """Empty, or why deepinv cannot be called."""
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_Placeholders())
    try:
        from deepinv.models import TVDenoiser  # noqa: F401
    except (ImportError, AttributeError, TypeError) as error:
        return f"deepinv: {error}"
    return ""


@torch.no_grad()
def denoise(
    b: np.ndarray,
    weight: float,
    iterations: int,
    tau: float,
    rho: float = 1.99,
    callback: Callable[[np.ndarray], None] | None = None,
) -> np.ndarray:
    """``iterations`` steps of TVDenoiser from x = b. With ``callback``, which sees every x, the same steps are taken
    one call at a time: the model keeps its variables between calls."""
    from deepinv.models import TVDenoiser

    image = torch.from_numpy(b)[None, None]
    model = TVDenoiser(tau=tau, rho=rho, n_it_max=iterations if callback is None else 1, crit=0.0)
    for _ in range(1 if callback is None else iterations):
        x = model(image, ths=weight)
        if callback is not None:
            callback(x[0, 0].numpy())
    return np.asarray(x[0, 0].numpy())
