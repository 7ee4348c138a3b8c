"""Which calls compiled kernels can take: their compiler is importable, and tensors are plain, contiguous, on one device
that has kernels, and outside autograd. ``NUMBA_DISABLE_JIT=1`` turns those of the CPU off."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

__all__ = ["COMPILERS", "Compiler", "as_array", "is_current", "kernels_for", "numba_works", "triton_works"]

_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Compiler:
    """What compiles the kernels of a kind of device.

    package: where its modules are. works: whether it is there. argument: what its kernels take for a tensor, sharing
    the memory of a contiguous one; Triton's know no strides.
    """

    package: str
    works: Callable[[], bool]
    argument: Callable[[Tensor], Any]


def kernels_for(name: str, *tensors: Tensor) -> ModuleType | None:
    """The module ``<name>`` of the compiler of these tensors' device when its kernels can run on them, None otherwise.
    Imports the compiler the first time that they can."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    device = tensors[0].device
    compiler = COMPILERS.get(device.type)
    if compiler is None or not is_current(device) or not all(t.device == device and _is_plain(t) for t in tensors):
        return None
    if not compiler.works():
        return None
    return _module(f"{compiler.package}.{name}")


def as_array(t: Tensor) -> Any:
    """What the kernels of its device take for a tensor, sharing its memory if it is contiguous."""
    return COMPILERS[t.device.type].argument(t)


def is_current(device: torch.device) -> bool:
    """Whether launches go to this device: of several GPUs, one is the current one."""
    return device.type != "cuda" or device.index == torch.cuda.current_device()


def _is_plain(t: Tensor) -> bool:
    return t.dtype in _DTYPES and type(t) is Tensor and t.is_contiguous()


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
def triton_works() -> bool:
    """Whether Triton is installed and importable."""
    if find_spec("triton") is None:
        return False
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    return True


@cache
def _module(name: str) -> ModuleType | None:
    """None where a device has no such kernels."""
    return importlib.import_module(name) if find_spec(name) else None


COMPILERS = {
    "cpu": Compiler("learnreg.kernels", lambda: numba_works(), lambda t: t.numpy()),
    "cuda": Compiler("learnreg.kernels.cuda", lambda: triton_works(), lambda t: t.contiguous()),
}
"""By the type of the device; others run plain torch."""
