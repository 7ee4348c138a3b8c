"""Linear operators on batched tensors: the forward operators of imaging and the learned operators of regularizers.

An operator maps (batch, *domain_shape) to (batch, *range_shape). It is built from differentiable torch operations, or
from :func:`linear_map`, so that A^T A survives any number of differentiations.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self, cast

import torch
from torch import Tensor

from learnreg.errors import OperatorError
from learnreg.linear.arguments import real_number
from learnreg.linear.bands import Bands
from learnreg.linear.fourier_symbol import point_response_symbol
from learnreg.linear.grad_mode import full_precision
from learnreg.linear.linear_map import linear_map
from learnreg.linear.local_matrix import LocalMatrix
from learnreg.linear.normed import Normed
from learnreg.linear.norms import NormBound
from learnreg.linear.parameter_groups import NormPairing, Pairing
from learnreg.linear.shapes import Shape, check_batched, checked_shape
from learnreg.linear.share import Share
from learnreg.linear.stencil import Stencil

__all__ = ["Adjoint", "Composition", "LinearOperator", "Pair", "Scaled", "Sum", "linear_map"]


class LinearOperator(Normed):
    """Base class of every linear operator.

    A subclass sets ``domain_shape`` and ``range_shape`` (without the batch axis) and implements ``forward`` and
    ``adjoint``; it overrides ``norm_bound`` and ``gram_lower_bound`` when it knows better. Everything else is derived.
    Operators compute in the dtype, float32 or float64, and on the device of their input, under torch.autocast, too.

    Parameters
    ----------
    domain_shape, range_shape: shapes of one sample on both sides, without the batch.

    Examples
    --------
    >>> class Double(lr.LinearOperator):
    ...     def __init__(self):
    ...         super().__init__((1, 4, 4), (1, 4, 4))
    ...     def forward(self, x):
    ...         return 2 * x
    ...     def adjoint(self, y):
    ...         return 2 * y
    >>> report = lr.testing.check_operator(Double(), dtype=torch.float64)  # raises lr.OperatorError
    """

    domain_shape: Shape
    range_shape: Shape
    unit_roundoff: float = 0.0  # of operators that compute in less than the precision of their input
    examine: bool = True  # False: one of your own is taken as it is, and errors that rest on it are estimates

    def __init__(self, domain_shape: Shape, range_shape: Shape) -> None:
        super().__init__()
        self.domain_shape = checked_shape(domain_shape, "domain_shape")
        self.range_shape = checked_shape(range_shape, "range_shape")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in {"forward", "adjoint", "forward_into"} & set(vars(cls)):
            setattr(cls, name, full_precision(vars(cls)[name]))

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x, from (batch, *domain_shape) to (batch, *range_shape)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y (Euclidean), from (batch, *range_shape) to (batch, *domain_shape)."""

    def on(self, domain_shape: Shape) -> LinearOperator:
        """The same map, with the same parameters, on images of another shape. Override it where there is one.

        Raises
        ------
        OperatorError: the operator is of one shape alone.
        """
        if tuple(domain_shape) == tuple(self.domain_shape):
            return self
        raise OperatorError(
            f"{type(self).__name__} maps images of shape {tuple(self.domain_shape)} alone, not {tuple(domain_shape)}.",
            "shape",
        )

    def forward_into(self, x: Tensor, out: Tensor) -> Tensor:
        """A x in the memory of ``out`` (batch, *range_shape), contiguous; not differentiable. Override it where that
        saves the allocation of the result."""
        return out.copy_(self(x))

    def gram_lower_bound(self) -> float:
        """True lower bound of the smallest eigenvalue of A^T A; 0 when nothing better is known. *Rigorous bound.*"""
        return 0.0

    def adjoint_mismatch(self) -> float:
        """How far ``adjoint`` is from A^T, relative to ‖A‖: 0.0 says that it is exact up to rounding. Override it with
        a positive number, an *estimate*, where it is not: nothing is certified then, since every bound rests on
        gradients."""
        return 0.0

    def diagonal(self) -> Tensor | None:
        """The tensor d of shape ``domain_shape`` with A = diag(d), when A is one; None otherwise."""
        return None

    def row_norms(self, grouped: bool) -> Tensor | float:
        """Bound of the 2-norm of each row of A (of each group of rows along the first range axis, if ``grouped``), a
        number or a tensor that broadcasts against the range. *Rigorous bound* when ``norm_bound`` is one."""
        return self.norm_bound()

    def channel_norm(self, weights: Tensor) -> float | None:
        """Bound of ‖diag(√weights) A‖ for a non-negative weight of each channel of the range, or each group of them;
        None where that is not at hand for so many. *Rigorous bound* when ``norm_bound`` is one."""
        return None

    def gram_diagonal(self, weights: Tensor) -> Tensor | None:
        """The diagonal of A^T diag(w) A for weights w (batch, *range_shape), (batch, *domain_shape); None where it is
        not at hand."""
        return None

    def stencil(self) -> Stencil | None:
        """How this operator is a convolution, for preconditioners of regularizers; None when it is not one."""
        return None

    def window(self) -> tuple[int, int] | None:
        """Sides (k, l) of windows of an image (1, H, W): each entry of A x sees the pixels of one window alone, so that
        A^T diag(s) A couples pixels less than k rows and l columns apart; None where nothing is known, or more, and
        for other images."""
        grey = len(self.domain_shape) == 3 and self.domain_shape[0] == 1
        stencil = self.stencil() if grey else None
        return None if stencil is None or stencil.circular else (stencil.filters.shape[-2], stencil.filters.shape[-1])

    def gram_entries(self, weights: Tensor) -> LocalMatrix | None:
        """A^T diag(w) A for weights w of the range, in float64, entry by entry, or for symmetric matrices (members,
        members, ...) of groups of the range; None where that is not at hand, and for other domains than images (1, H,
        W)."""
        return None

    def bands(self) -> Bands | None:
        """How this operator works through images by bands of rows, for images whose responses are too large to keep;
        None where nothing is known."""
        return None

    def approximate_inverse(self, y: Tensor) -> Tensor | None:
        """An image x with A x close to a multiple of y, by a direct method for no more than a few applications, such as
        filtered back-projection; None otherwise. Solvers start from it, nothing depends on it."""
        return None

    def gram_symbol(self, sides: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """*Estimate* of the eigenvalues of A^T A for the frequencies of a torus with these sides, (*half spectrum,),
        the same for all channels, from its responses to a few points in this dtype; None unless the domain is an image
        (channels, *sides), of one to three sides. Preconditioners use it, no bound does. Its applications are made
        once, like those of ``norm_bound``, and not counted."""
        if not 2 <= len(self.domain_shape) <= 4:
            return None
        gram = lambda v: self.adjoint(self(v))  # noqa: E731
        find = lambda: point_response_symbol(gram, self.domain_shape, sides, dtype, self._device())  # noqa: E731
        return cast(Tensor, self._known(("symbol", sides, dtype), find))

    def parameter_lipschitz(self) -> float | None:
        """Constant c with ‖∂_theta <A_theta u, p>‖ <= c ‖u‖ ‖p‖ over all parameters that require a gradient, for A
        affine in them; 0 without any, None when unknown (no certificate then). *Rigorous bound.*"""
        return None if any(p.requires_grad for p in self.parameters()) else 0.0

    def parameter_groups(self) -> tuple[Pairing, ...]:
        """What certificates know of the parameters' gradient: all of them form the group "operator", known by
        ``parameter_lipschitz``. Override it where norms of that gradient can be said to be smaller."""
        lipschitz = self.parameter_lipschitz()
        return () if lipschitz is None else (NormPairing(lipschitz),)

    def group_images(self, p: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """A_g^T p_g for the groups g of p (batch, *range_shape) that share an entry of a parameter of this shape:
        (batch, groups, unknowns), for about one application; None where that takes more."""
        return None

    def part_at(self, share: Share) -> LinearOperator:
        """The operator that makes this share of the responses, of a stack; itself otherwise."""
        return self

    # ---- derived -------------------------------------------------------------------------------------------------

    @property
    def T(self) -> LinearOperator:
        """The adjoint as an operator."""
        return Adjoint(self)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        return Composition(self, _operand(self, "@", other))

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return Sum(self, _operand(self, "+", other))

    def __mul__(self, factor: float) -> LinearOperator:
        return Scaled(self, factor)

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        return Scaled(self, -1.0)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return Sum(self, Scaled(_operand(self, "-", other), -1.0))

    def check_domain(self, x: Tensor, name: str = "x") -> None:
        """Raise ShapeError unless x has shape (batch, *domain_shape)."""
        check_batched(x, self.domain_shape, f"{name} for {type(self).__name__}")

    def check_range(self, y: Tensor, name: str = "y") -> None:
        """Raise ShapeError unless y has shape (batch, *range_shape)."""
        check_batched(y, self.range_shape, f"{name} for the range of {type(self).__name__}")

    def extra_repr(self) -> str:
        return f"{self.domain_shape} -> {self.range_shape}"


def _operand(first: LinearOperator, symbol: str, other: object) -> LinearOperator:
    if isinstance(other, LinearOperator):
        return other
    hint = " To apply the operator to images write A(x)." if isinstance(other, Tensor) else ""
    names = f"{type(first).__name__} {symbol} {type(other).__name__}"
    raise OperatorError(f"{names}: the right side is no LinearOperator.{hint}", "type")


class Adjoint(LinearOperator):
    """A^T as an operator."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.range_shape, operator.domain_shape)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return cast(Tensor, self.operator(y))

    def _find_norm(self) -> NormBound:
        return self.operator.norm()

    def adjoint_mismatch(self) -> float:
        return self.operator.adjoint_mismatch()

    def parameter_lipschitz(self) -> float | None:
        return self.operator.parameter_lipschitz()

    @property
    def T(self) -> LinearOperator:
        return self.operator


class Scaled(LinearOperator):
    """factor · A."""

    def __init__(self, operator: LinearOperator, factor: float) -> None:
        super().__init__(operator.domain_shape, operator.range_shape)
        self.operator, self.factor = operator, real_number(factor, f"{type(operator).__name__} times a number")

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.operator(x)) * self.factor

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(y) * self.factor

    def stored(self) -> dict[str, Any]:
        return {"config": {"operator": self.operator, "factor": self.factor}}

    @classmethod
    def from_stored(cls, stored: dict[str, Any], image_shape: Shape | None) -> Self:
        return cls(**stored["config"])

    def _find_norm(self) -> NormBound:
        return self.operator.norm().scaled(abs(self.factor))

    def adjoint_mismatch(self) -> float:
        return self.operator.adjoint_mismatch()

    def gram_lower_bound(self) -> float:
        return self.factor**2 * self.operator.gram_lower_bound()

    def diagonal(self) -> Tensor | None:
        diagonal = self.operator.diagonal()
        return None if diagonal is None else diagonal * self.factor

    def row_norms(self, grouped: bool) -> Tensor | float:
        return abs(self.factor) * self.operator.row_norms(grouped)

    def _find_nonnegative(self) -> bool:
        return self.factor >= 0 and self.operator.is_nonnegative()

    def parameter_lipschitz(self) -> float | None:
        constant = self.operator.parameter_lipschitz()
        return None if constant is None else abs(self.factor) * constant


class Pair(LinearOperator):
    """Two operators combined; the bound of the parts caps the black-box bound of the whole."""

    def __init__(self, first: LinearOperator, second: LinearOperator, domain_shape: Shape, range_shape: Shape) -> None:
        super().__init__(domain_shape, range_shape)
        self.first, self.second = first, second

    def stored(self) -> dict[str, Any]:
        return {"config": {"first": self.first, "second": self.second}}

    @classmethod
    def from_stored(cls, stored: dict[str, Any], image_shape: Shape | None) -> Self:
        return cls(stored["config"]["first"], stored["config"]["second"])  # type: ignore[call-arg]

    @abstractmethod
    def _bound_of_parts(self) -> float: ...

    def _find_nonnegative(self) -> bool:
        return (self.first.is_nonnegative() and self.second.is_nonnegative()) or super()._find_nonnegative()

    def adjoint_mismatch(self) -> float:
        return self.first.adjoint_mismatch() + self.second.adjoint_mismatch()

    def _find_norm(self) -> NormBound:
        found = super()._find_norm()
        if found.kind == "rigorous":
            return found
        parts = self._bound_of_parts()
        kinds = (self.first.norm_bound_kind, self.second.norm_bound_kind)
        if parts <= found.value and "probabilistic" not in kinds:
            return NormBound(parts, "declared" if "declared" in kinds else "rigorous")
        return NormBound(min(found.value, parts), found.kind, found.failure)


class Composition(Pair):
    """A B: first B, then A."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        if outer.domain_shape != inner.range_shape:
            raise OperatorError(
                f"{type(outer).__name__} @ {type(inner).__name__}: the left operator takes {outer.domain_shape}, "
                f"the right one returns {inner.range_shape}.",
                "composition",
            )
        super().__init__(outer, inner, inner.domain_shape, outer.range_shape)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.first(self.second(x)))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.second.adjoint(self.first.adjoint(y))

    def _bound_of_parts(self) -> float:
        return self.first.norm_bound() * self.second.norm_bound()

    def gram_lower_bound(self) -> float:
        return self.first.gram_lower_bound() * self.second.gram_lower_bound()


class Sum(Pair):
    """A + B."""

    def __init__(self, first: LinearOperator, second: LinearOperator) -> None:
        if first.domain_shape != second.domain_shape or first.range_shape != second.range_shape:
            raise OperatorError(
                f"{type(first).__name__} + {type(second).__name__}: {first.domain_shape} -> {first.range_shape} and "
                f"{second.domain_shape} -> {second.range_shape} differ.",
                "sum",
            )
        super().__init__(first, second, first.domain_shape, first.range_shape)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.first(x) + self.second(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.first.adjoint(y) + self.second.adjoint(y)

    def _bound_of_parts(self) -> float:
        return self.first.norm_bound() + self.second.norm_bound()
