"""Non-uniform Fourier transforms of MRI-NUFFT."""

from __future__ import annotations

from typing import Any

import numpy as np

from learnreg.errors import OperatorError
from learnreg.operators.adapters.black_box import BlackBox
from learnreg.operators.adapters.complex_host import adapted, complex_function, needs

__all__ = ["from_mrinufft"]


def from_mrinufft(
    operator: Any, *, norm_bound: float | None = None, gram_lower_bound: float | None = None, check: bool = True
) -> BlackBox:
    """An operator of MRI-NUFFT, such as ``mrinufft.get_operator("finufft", trajectory, shape=..., n_coils=...,
    smaps=...)``, on the host, one image at a time, in its precision.

    The domain is (2, *shape) with one coil or with sensitivity maps, (2, coils, *shape) without maps; the range is
    (2, coils, samples), or (2, samples) with one coil. mrinufft itself is not imported.

    Parameters
    ----------
    operator: without density compensation, and with ``n_batchs=1``.
    norm_bound, gram_lower_bound: declared by you; see :func:`from_callables`.
    check: test linearity and the adjoint (5 calls).

    Raises
    ------
    OperatorError: something else, several batches, density compensation (its adjoint is none), NaN.
    """
    name = f"from_mrinufft({type(operator).__name__})"
    needs(operator, ("op", "adj_op", "shape", "n_coils", "n_samples"), name, "an operator of mrinufft.get_operator")
    if getattr(operator, "n_batchs", 1) != 1:
        raise OperatorError(
            f"{name}: it takes {operator.n_batchs} images at once; build it with n_batchs=1, batches are gone through "
            "here.",
            "shape",
        )
    if getattr(operator, "uses_density", False):
        raise OperatorError(
            f"{name}: it compensates for the density of samples, so that adj_op is not the adjoint of op; build it "
            "with density=False. Weights of samples are lr.WeightedLeastSquares(weights).",
            "adjoint",
        )
    if int(operator.n_samples) < 1:
        raise OperatorError(
            f"{name}: it has no samples of a trajectory; Cartesian sampling is learnreg.operators.CartesianMRI(mask, "
            "coil_sensitivities).",
            "shape",
        )
    coils, sides = int(operator.n_coils), tuple(int(n) for n in operator.shape)
    alone = coils == 1 or bool(getattr(operator, "uses_sense", False))
    image = sides if alone else (coils, *sides)
    samples = (int(operator.n_samples),) if coils == 1 else (coils, int(operator.n_samples))
    dtype = np.dtype(getattr(operator, "cpx_dtype", np.complex64))
    return adapted(
        name,
        complex_function(operator.op, image, samples, dtype),
        complex_function(operator.adj_op, samples, image, dtype),
        (2, *image),
        (2, *samples),
        single=dtype == np.complex64,
        norm_bound=norm_bound,
        gram_lower_bound=gram_lower_bound,
        check=check,
        hint="Both come from the library: raise its precision (eps, or an upsampling factor of 2).",
    )
