"""Projectors of the ASTRA toolbox."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from learnreg.errors import ConfigError, OperatorError
from learnreg.linear.operator import LinearOperator
from learnreg.linear.shapes import Shape
from learnreg.operators.adapters.checks import check_adjoint, check_linear
from learnreg.operators.adapters.host import checked_sizes
from learnreg.operators.adapters.pylops import with_channel
from learnreg.operators.adapters.scipy import host_operator, sparse_operator

__all__ = ["from_astra"]


def from_astra(
    projector: Any, domain_shape: Shape | None = None, range_shape: Shape | None = None, *, check: bool = True
) -> LinearOperator:
    """A projector of the ASTRA toolbox: its id, or an ``astra.OpTomo``.

    A two-dimensional CPU projector becomes a :class:`SparseOperator` with ASTRA's own matrix: exact transpose, float32
    or float64, any torch device; ASTRA is not needed after that. GPU and three-dimensional projectors run through
    OpTomo, in float32, image by image; GPU back-projectors are not exact transposes and fail the check.

    Parameters
    ----------
    domain_shape, range_shape: without the batch axis; None: the volume's and the sinogram's, with a channel axis in
        two dimensions: (1, rows, columns) and (1, angles, detectors).
    check: test linearity and the adjoint of an OpTomo (5 calls).

    Raises
    ------
    OperatorError: unknown projector, no GPU for one that needs it, sizes that do not fit, a wrong adjoint.
    ConfigError: ASTRA is not installed.
    """
    try:
        import astra
    except ImportError as error:
        raise ConfigError(
            f"from_astra needs the package astra-toolbox ({error}). Install it with: pip install 'learnreg[ct]'"
        ) from error
    tomo = projector if isinstance(projector, astra.OpTomo) else _tomo(astra, projector)
    name = f"from_astra({tomo.pg['type']})"
    domain_shape = with_channel(tomo.vshape) if domain_shape is None else domain_shape
    range_shape = with_channel(tomo.sshape) if range_shape is None else range_shape
    checked_sizes(tomo.shape, domain_shape, range_shape, name)
    if not tomo.appendString:
        matrix, dtype = _matrix(astra, tomo.proj_id)
        return sparse_operator(matrix, dtype, domain_shape, range_shape)
    if not astra.use_cuda():
        raise OperatorError(f"{name}: this projector needs a GPU, and ASTRA finds none.", "device")
    operator = host_operator(tomo, domain_shape, range_shape, torch.float32, name)
    if check:
        check_linear(operator)
        check_adjoint(operator, "GPU back-projectors of ASTRA are not the transposes of its projectors.")
    return operator


def _tomo(astra: Any, projector: Any) -> Any:
    try:
        return astra.OpTomo(projector)
    except Exception as error:
        raise OperatorError(
            f"from_astra({projector!r}): expected the id of an ASTRA projector or an astra.OpTomo; ASTRA says: {error}",
            "type",
        ) from error


def _matrix(astra: Any, projector: int) -> tuple[Any, torch.dtype]:
    """The projector's matrix and the dtype that holds it without loss: ASTRA computes its entries in float32."""
    handle = astra.projector.matrix(projector)
    try:
        matrix = astra.matrix.get(handle)
    finally:
        astra.matrix.delete(handle)
    lossless = bool((matrix.data.astype(np.float32) == matrix.data).all())
    return matrix, torch.float32 if lossless else torch.float64
