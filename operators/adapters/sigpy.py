"""Linear operators of SigPy."""

from __future__ import annotations

from typing import Any

from learnreg.operators.adapters.black_box import BlackBox
from learnreg.operators.adapters.complex_host import adapted, complex_function, needs

__all__ = ["from_sigpy"]


def from_sigpy(
    linop: Any, *, norm_bound: float | None = None, gram_lower_bound: float | None = None, check: bool = True
) -> BlackBox:
    """A ``sigpy.linop.Linop``, on the host, one image at a time, in double precision where its arrays allow it.

    The domain is (2, *ishape), the range (2, *oshape): real and imaginary part. sigpy itself is not imported.

    Parameters
    ----------
    linop: a ``sigpy.linop.Linop``.
    norm_bound, gram_lower_bound: declared by you; see :func:`from_callables`.
    check: test linearity and the adjoint (5 calls).

    Raises
    ------
    OperatorError: no Linop, NaN, not linear, a wrong adjoint.
    """
    name = f"from_sigpy({type(linop).__name__})"
    needs(linop, ("ishape", "oshape", "H"), name, "a sigpy.linop.Linop")
    given, returned = tuple(linop.ishape), tuple(linop.oshape)
    return adapted(
        name,
        complex_function(linop, given, returned),
        complex_function(linop.H, returned, given),
        (2, *given),
        (2, *returned),
        norm_bound=norm_bound,
        gram_lower_bound=gram_lower_bound,
        check=check,
    )
