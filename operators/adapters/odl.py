"""Operators of ODL, both ways. ODL's adjoints belong to weighted inner products; these belong to the Euclidean one."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np
import torch

from learnreg.errors import ConfigError, OperatorError
from learnreg.linear.operator import LinearOperator
from learnreg.linear.shapes import Shape
from learnreg.operators.adapters.black_box import BlackBox
from learnreg.operators.adapters.checks import adjoint_gap, check_linear, declare, gap_limit, probe
from learnreg.operators.adapters.host import HostFunction, checked_sizes, real_dtype
from learnreg.operators.adapters.odl_spaces import Layout, layout_of
from learnreg.operators.adapters.pylops import with_channel
from learnreg.operators.adapters.sparse import assemble

__all__ = ["OdlFunction", "from_odl", "to_odl"]

_HINT = "ODL's astra back ends want spaces with dtype='float32'; try operator(operator.domain.one()) in ODL."


class OdlFunction:
    """An ODL operator on rows (batch, n), each divided by ``before`` and its result multiplied by ``after``."""

    def __init__(self, operator: Any, domain: Layout, range_: Layout, before: Any = 1.0, after: Any = 1.0) -> None:
        self.operator, self.domain, self.range = operator, domain, range_
        self.before, self.after = before, after

    def __call__(self, x: Any) -> Any:
        return np.stack(
            [self.after * self.range.flat(self.operator(self.domain.element(row / self.before))) for row in x]
        )


def from_odl(
    operator: Any,
    domain_shape: Shape | None = None,
    range_shape: Shape | None = None,
    *,
    norm_bound: float | None = None,
    gram_lower_bound: float | None = None,
    assembled: bool = False,
) -> LinearOperator:
    """A linear ODL operator between real spaces; computes on the host, image by image, in the dtype of its spaces.

    With the weights W of the two inner products, ODL's adjoint is W_domain^-1 A^T W_range; the adjoint here is
    W_domain · adjoint · W_range^-1 = A^T, for constant weights, one weight per cell, and products of such spaces. Some
    ODL operators (MatrixOperator) return A^T itself whatever the weights: the adjoint test decides, always.

    Parameters
    ----------
    operator: a linear operator of ODL.
    domain_shape, range_shape: without the batch axis; None: those of the spaces, with a channel axis if they are
        two-dimensional; a product of k spaces of one shape is (k, *shape), of several shapes flat.
    norm_bound, gram_lower_bound: declared by you (Euclidean!); see :func:`from_callables`.
    assembled: compute the matrix instead, one call per unknown: ODL's adjoint is not used, the transpose is exact, and
        the result works in float64, on any device, without ODL; see :func:`assemble`.

    Raises
    ------
    OperatorError: nonlinear, complex, no adjoint, or an adjoint that fails the adjoint test (the error names the gap).
    ConfigError: declared bounds with ``assembled``.
    """
    name = f"from_odl({type(operator).__name__})"
    if not all(hasattr(operator, attribute) for attribute in ("domain", "range", "is_linear")):
        raise OperatorError(f"{name}: expected an odl.Operator.", "type")
    if not operator.is_linear:
        raise OperatorError(f"{name}: it is not linear; pass a linear operator, or a derivative of it.", "linearity")
    domain, range_ = layout_of(operator.domain, name), layout_of(operator.range, name)
    shapes = (
        tuple(domain_shape) if domain_shape is not None else with_channel(domain.shape),
        tuple(range_shape) if range_shape is not None else with_channel(range_.shape),
    )
    checked_sizes((range_.size, domain.size), *shapes, name)
    forward = HostFunction(OdlFunction(operator, domain, range_), shapes[1])
    adapt = partial(
        BlackBox, forward, domain_shape=shapes[0], range_shape=shapes[1], name=name, hint=_HINT,
        dtype=_common_dtype((domain, range_), name),
    )  # fmt: skip
    if assembled:
        if norm_bound is not None or gram_lower_bound is not None:
            raise ConfigError(f"{name}: the bounds of an assembled operator are computed; declare none.")
        adapted = adapt(adjoint=_no_adjoint)
        check_linear(adapted)
        return assemble(adapted)
    adapted = _with_right_adjoint(adapt, _adjoint_of(operator, name), domain, range_)
    check_linear(adapted)
    declare(adapted, norm_bound, gram_lower_bound)
    return adapted


def _adjoint_of(operator: Any, name: str) -> Any:
    try:
        return operator.adjoint
    except Exception as error:
        raise OperatorError(
            f"{name}: it has no adjoint ({type(error).__name__}: {error}). from_odl(operator, assembled=True) does "
            "without, at the price of one call per unknown.",
            "adjoint",
        ) from error


def _with_right_adjoint(adapt: partial[BlackBox], adjoint: Any, domain: Layout, range_: Layout) -> BlackBox:
    """The adaptation whose adjoint passes the adjoint test: corrected by the weights, or else ODL's as it is."""
    corrections: dict[str, tuple[Any, Any]] = {"without weights": (1.0, 1.0)}
    if domain.weights is not None and range_.weights is not None:
        corrections = {"corrected by the weights": (range_.weights, domain.weights), **corrections}
    gaps: dict[str, float] = {}
    for label, (before, after) in corrections.items():
        function = OdlFunction(adjoint, range_, domain, before, after)
        adapted = adapt(adjoint=HostFunction(function, adapt.keywords["domain_shape"]))
        if not gaps:
            probe(adapted)
        gaps[label] = adjoint_gap(adapted)
        if gaps[label] <= gap_limit(adapted):
            return adapted
    found = ", ".join(f"{gap:.1e} {label}" for label, gap in gaps.items())
    raise OperatorError(
        f"{adapted.name}: its adjoint is none. |<Ax,y> - <x,By>| / (‖Ax‖ ‖y‖) is {found}; rounding explains "
        f"{gap_limit(adapted):.0e}. ODL's skimage back end is one such case (astra_cpu is not); "
        "from_odl(operator, assembled=True) computes an exact adjoint, at the price of one call per unknown.",
        "adjoint",
    )


def _no_adjoint(y: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError


def _common_dtype(layouts: tuple[Layout, ...], name: str) -> torch.dtype:
    """float32 where any space is, else float64."""
    found = {real_dtype(space.dtype_identifier, name) for layout in layouts for space in _leaves(layout)}
    return torch.float32 if torch.float32 in found else torch.float64


def _leaves(layout: Layout) -> list[Any]:
    """The spaces without parts below a layout."""
    if not layout.parts:
        return [layout.space]
    return [space for part in layout.parts for space in _leaves(part)]


def to_odl(operator: LinearOperator, dtype: str = "float64") -> Any:
    """An odl.Operator between Euclidean spaces ``odl.rn`` of the operator's shapes, whose ``adjoint`` is A^T.

    Parameters
    ----------
    operator: of this package.
    dtype: "float32" or "float64".

    Raises
    ------
    ConfigError: ODL is not installed.
    """
    try:
        options = np.get_printoptions()
        odl: Any = importlib.import_module("odl")
        np.set_printoptions(**options)  # which ODL changes
    except ImportError as error:
        raise ConfigError(f"to_odl needs the package odl ({error}). Install it: pip install 'learnreg[odl]'") from error

    class Adapted(odl.Operator):  # type: ignore[misc]
        """A learnreg operator on single elements."""

        def __init__(self, wrapped: LinearOperator) -> None:
            spaces = (odl.rn(shape, dtype=dtype) for shape in (wrapped.domain_shape, wrapped.range_shape))
            super().__init__(*spaces, linear=True)
            self.wrapped = wrapped

        def _call(self, x: Any) -> Any:
            batch = torch.tensor(np.asarray(x.data), device=self.wrapped._device())[None]
            with torch.no_grad():
                return self.range.element(self.wrapped(batch)[0].cpu().numpy())

        @property
        def adjoint(self) -> Any:
            return Adapted(self.wrapped.T)

    return Adapted(operator)
