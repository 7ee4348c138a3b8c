"""Norms of operators by SciPy's Lanczos iteration, to rounding."""

from __future__ import annotations

import math

import scipy.sparse.linalg
import torch

from learnreg.linear.operator import LinearOperator

__all__ = ["norm_of"]


@torch.no_grad()
def norm_of(operator: LinearOperator) -> float:
    """‖A‖ in float64."""
    size = math.prod(operator.domain_shape)

    def gram(v):  # type: ignore[no-untyped-def]
        image = torch.from_numpy(v.reshape(1, *operator.domain_shape))
        return operator.adjoint(operator(image)).numpy().reshape(-1)

    square = scipy.sparse.linalg.LinearOperator((size, size), matvec=gram, dtype="float64")
    vectors = min(size, 80)  # thin images have clusters of singular values
    largest = scipy.sparse.linalg.eigsh(square, k=1, ncv=vectors, which="LA", return_eigenvectors=False)
    return math.sqrt(float(largest[0]))
