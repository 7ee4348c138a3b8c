"""Physics of DeepInverse, by what they offer, ``A`` and ``A_adjoint`` on batches; regularizers as its priors and
reconstructors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, OperatorError
from learnreg.linear.arguments import check_type, real_number
from learnreg.linear.identity import Unchanged
from learnreg.linear.shapes import Shape
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.lower_level.regularizer import Regularizer
from learnreg.operators.adapters.black_box import BlackBox
from learnreg.operators.adapters.checks import check_adjoint, check_linear, declare, probe
from learnreg.result import Solution
from learnreg.solvers.solve import solve

__all__ = ["DeepinvRegularizer", "from_deepinv", "to_deepinv"]


def from_deepinv(
    physics: Any,
    domain_shape: Shape,
    *,
    norm_bound: float | None = None,
    gram_lower_bound: float | None = None,
    device: torch.device | str | None = None,
    check: bool = True,
) -> BlackBox:
    """A linear physics of DeepInverse, or any object with ``A(x)`` and ``A_adjoint(y)`` on batches; its noise model is
    not used, and the package deepinv is not needed.

    Parameters
    ----------
    physics: with parameters that need no gradient; a module moves with ``.to(device)``.
    domain_shape: (channels, H, W); the range's shape is that of the first measurement.
    norm_bound, gram_lower_bound: declared by you; see :func:`from_callables`.
    device: where the first call is made; None: where the module's tensors are, or the CPU.
    check: test linearity and the adjoint (5 calls).

    Raises
    ------
    OperatorError: no ``A_adjoint``, several outputs, complex, nonlinear, NaN, a wrong adjoint.
    """
    name = f"from_deepinv({type(physics).__name__})"
    for method in ("A", "A_adjoint"):
        if not callable(getattr(physics, method, None)):
            raise OperatorError(
                f"{name}: it has no {method}. A linear physics has A and A_adjoint; with A alone, "
                "from_callables(physics.A, None, domain_shape, range_shape) derives the adjoint.",
                "type",
            )
    range_shape = _range_shape(physics, tuple(domain_shape), device, name)
    operator = BlackBox(physics.A, physics.A_adjoint, domain_shape, range_shape, name=name, device=device)
    probe(operator)
    if check:
        check_linear(operator)
        check_adjoint(operator, "from_callables(physics.A, None, domain_shape, range_shape) derives an exact one.")
    declare(operator, norm_bound, gram_lower_bound)
    return operator


@torch.no_grad()
def _range_shape(physics: Any, domain_shape: Shape, device: torch.device | str | None, name: str) -> Shape:
    """The shape of one measurement, from an image of zeros."""
    tensors = [*physics.parameters(), *physics.buffers()] if isinstance(physics, nn.Module) else []
    place = device if device is not None else (tensors[0].device if tensors else None)
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    try:
        image = physics.A(torch.zeros(1, *domain_shape, dtype=dtype, device=place))
    except Exception as error:
        raise OperatorError(
            f"{name}: A raised {type(error).__name__} for an image of shape {(1, *domain_shape)}: {error}. Check "
            "domain_shape, which has no batch axis.",
            "forward",
        ) from error
    if not isinstance(image, Tensor):
        raise OperatorError(
            f"{name}: A returned {type(image).__name__}, expected one tensor. Adapt each output on its own and combine "
            "them with lr.vstack.",
            "type",
        )
    return tuple(image.shape[1:])


def to_deepinv(
    regularizer: Regularizer, *, factor: float = 1.0, ridge: float = 0.0, tolerance: float = 1e-3
) -> nn.Module:
    """A regularizer as DeepInverse calls them: a reconstructor, called as ``model(y, physics)``, that minimises
    ½‖A x - y‖² + factor R(x) + ridge/2 ‖x‖² to a certified accuracy, and a prior with ``fn``, ``grad`` and ``prox``.
    The package deepinv is not needed.

    Parameters
    ----------
    regularizer: of any family; it is shared, not copied.
    factor: of R, a positive number: what was learned by denoising is too strong for other noise.
    ridge: where the physics has no inverse, for certificates.
    tolerance: root-mean-square error of images, as of :func:`learnreg.solve`.

    Raises
    ------
    ConfigError: something that is no regularizer, or a number out of its range. When it is called, what
        :func:`from_deepinv` and :func:`learnreg.solve` raise.
    """
    return DeepinvRegularizer(regularizer, factor, ridge, tolerance)


class DeepinvRegularizer(nn.Module):
    """What :func:`to_deepinv` returns. ``solution``: of the last call, with its error bound."""

    explicit_prior = True

    def __init__(self, regularizer: Regularizer, factor: float, ridge: float, tolerance: float) -> None:
        super().__init__()
        check_type(regularizer, Regularizer, "to_deepinv(regularizer)", "a Regularizer (see learnreg.regularizers)")
        self.factor = real_number(factor, "to_deepinv(factor)", above=0.0)
        self.ridge = real_number(ridge, "to_deepinv(ridge)", least=0.0)
        self.tolerance = real_number(tolerance, "to_deepinv(tolerance)", above=0.0)
        self.regularizer = regularizer
        self.solution: Solution | None = None

    def forward(self, y: Tensor, physics: Any, **_: Any) -> Tensor:
        """The reconstruction (batch, *image_shape) of measurements y, whose images have the shape of
        ``physics.A_adjoint(y)``; no gradient (:func:`learnreg.solution_layer` has one)."""
        if not callable(getattr(physics, "A_adjoint", None)):
            raise ConfigError(f"to_deepinv: called with {type(physics).__name__}, expected (y, physics).")
        with torch.no_grad():
            domain_shape = tuple(physics.A_adjoint(y).shape[1:])
        operator = from_deepinv(physics, domain_shape, device=y.device)
        problem = LowerLevelProblem(operator, self.factor * self.regularizer, ridge=self.ridge)
        self.solution = solve(problem, y.detach(), self.tolerance)
        return self.solution.x

    def fn(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """factor R(x), (batch,); further arguments, such as a noise level, are not used."""
        return self.factor * self.regularizer.value(x)

    def grad(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """The gradient of ``fn``, shape of x."""
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.fn(point).sum(), point)
        return gradient

    def prox(self, x: Tensor, *_: Any, gamma: float = 1.0, **__: Any) -> Tensor:
        """argmin ½‖z - x‖² + gamma factor R(z), to the tolerance."""
        scaled = real_number(gamma, "prox(gamma)", above=0.0) * self.factor * self.regularizer
        self.solution = solve(LowerLevelProblem(Unchanged(tuple(x.shape[1:])), scaled), x.detach(), self.tolerance)
        return self.solution.x
