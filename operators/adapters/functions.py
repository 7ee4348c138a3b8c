"""Linear functions of tensors or of NumPy arrays, as functions of batches of tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.errors import OperatorError
from learnreg.linear.operator import LinearOperator
from learnreg.linear.shapes import Shape
from learnreg.operators.adapters.black_box import COMPLEX_HINT

__all__ = ["batched_function", "check_matrix"]

_ROUNDING = {True: 1e-4, False: 1e-9}
"""The relative difference that rounding explains, of functions with the digits of float32 and of float64."""


def batched_function(function: Callable[[Any], Any], domain_shape: Shape, range_shape: Shape) -> Callable[..., Tensor]:
    """The function for tensors (batch, *domain_shape), in float64: as one of tensors if it is one, else of one NumPy
    array at a time, of domain_shape or without the first axis where that is 1.

    Raises
    ------
    OperatorError: it fails in all of these ways.
    """
    noise = np.random.default_rng(5).standard_normal((2, *domain_shape))
    ways: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        (f"of a tensor {(2, *domain_shape)}", lambda x: _as_tensor(function(x))),
        (f"of an array {domain_shape}", lambda x: _one_by_one(function, x.numpy())),
    ]
    if domain_shape[0] == 1 and len(domain_shape) > 1:
        ways.append((f"of an array {domain_shape[1:]}", lambda x: _one_by_one(function, x.numpy()[:, 0])))
    failures = []
    for words, way in ways:
        try:
            result, alone = way(torch.tensor(noise)), way(torch.tensor(noise[1:]))
        except OperatorError:
            raise
        except Exception as error:
            failures.append(f"{words} it raised {type(error).__name__}: {' '.join(str(error).split())[:120]}")
            continue
        if not result.dim() or not _fits(tuple(result.shape), (2, *range_shape)):
            failures.append(f"{words} it made {tuple(result.shape)}")
        elif alone.shape != result[1:].shape or not torch.allclose(alone, result[1:], 1e-4, 1e-9):
            failures.append(f"{words} it mixes the first axis, which is that of the batch")
        else:
            return _whole(way, range_shape)
    raise OperatorError(
        f"assemble(forward): expected results of range_shape {range_shape}, but {'; '.join(failures)}.", "shape"
    )


def _whole(way: Callable[[Tensor], Tensor], range_shape: Shape) -> Callable[[Tensor], Tensor]:
    return lambda x: way(x).reshape(len(x), *range_shape)


def _fits(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether shapes agree, but for a first axis of 1 behind the batch."""
    return found == wanted or (wanted[1] == 1 and (found[0], *found[1:]) == (wanted[0], *wanted[2:]))


def _as_tensor(result: Any) -> Tensor:
    tensor = result.detach() if isinstance(result, Tensor) else torch.from_numpy(np.array(result))
    if tensor.is_complex():
        raise OperatorError(f"assemble(forward): it returned complex numbers. {COMPLEX_HINT}", "real")
    return tensor.double()


def _one_by_one(function: Callable[[Any], Any], images: Any) -> Tensor:
    return torch.stack([_as_tensor(function(image.copy())) for image in images])


def check_matrix(matrix: LinearOperator, forward: Callable[[Tensor], Tensor], threshold: float) -> None:
    """OperatorError unless a function does to two images of noise what the matrix made of its columns does."""
    x = torch.randn(2, *matrix.domain_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    x[1] *= 1e3
    expected, found = matrix(x), forward(x.clone())
    single = torch.equal(found, found.float().double())
    size = found.flatten(1).norm(dim=1) + threshold * x.flatten(1).norm(dim=1) * x[0].numel() ** 0.5
    gap = float(((found - expected).flatten(1).norm(dim=1) / size.clamp_min(1e-300)).nan_to_num(torch.inf).max())
    if not gap <= _ROUNDING[single] + (1.0 if threshold > 0 else 0.0):
        offset = ""
        with contextlib.suppress(Exception):
            if bool(forward(torch.zeros_like(x)).any()):
                offset = " forward(0) is not 0: subtract it, and move it to the data."
        raise OperatorError(
            f"assemble(forward): it is not linear: of noise it makes something else than the matrix of its columns "
            f"does (relative difference {gap:.1e}).{offset}",
            "linearity",
        )
