"""Which calls compiled kernels can take: numba is importable, and tensors are plain, contiguous, on the CPU and outside
autograd. ``NUMBA_DISABLE_JIT=1`` turns them off."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["kernels_for", "numba_works"]

_DTYPES = (torch.float32, torch.float64)


def kernels_for(name: str, *tensors: Tensor) -> ModuleType | None:
    """The module ``learnreg.kernels.<name>`` when its kernels can run on these tensors, None otherwise. Imports numba
    the first time that they can."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    return _module(name) if all(map(_is_plain, tensors)) and numba_works() else None


def _is_plain(t: Tensor) -> bool:
    return t.dtype in _DTYPES and t.device.type == "cpu" and type(t) is Tensor and t.is_contiguous()


@cache
def numba_works() -> bool:
    """Whether numba is installed, importable beside this NumPy, and allowed to compile."""
    if find_spec("numba") is None:
        return False
    try:
        config = importlib.import_module("numba").config
    except ImportError:  # numba refuses a NumPy newer than itself
        return False
    return not config.DISABLE_JIT


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f"learnreg.kernels.{name}")
