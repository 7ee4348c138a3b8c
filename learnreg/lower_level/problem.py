"""The lower-level problem: forward operator, data term, regularizer, ridge and constraint.

    energy(x, b) = D(A x - b) + R(x) + ridge/2 ‖x‖² (+inf outside the constraint)

``LowerLevelProblem`` is what users build; ``problem.frozen()`` is the same at its present parameters, for solvers and
certificates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from learnreg.errors import AssumptionError, ConfigError
from learnreg.linear.arguments import (
    check_batch,
    check_images,
    check_one_of,
    check_precision,
    check_type,
    given_tensor,
    real_number,
)
from learnreg.linear.examination import is_own_class
from learnreg.linear.grad_mode import full_precision
from learnreg.linear.operator import LinearOperator
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.constraints import Box, Unconstrained
from learnreg.lower_level.data_terms import DataTerm, LeastSquares
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.noise_levels import checked_level
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.lower_level.twins import Twins
from learnreg.result import Minimiser, brief

__all__ = ["LowerLevelProblem", "freeze"]


class LowerLevelProblem(nn.Module):
    """½‖Ax - b‖² + R(x), or with another data term, a ridge and a constraint.

    Parameters
    ----------
    operator: the forward operator A.
    regularizer: R.
    ridge: r >= 0 adds r/2 ‖x‖² per sample; a scalar nn.Parameter is learnable and appears in hypergradients as
        ``ridge``.
    data_term: ``LeastSquares()`` (default), ``WeightedLeastSquares(weights)``, ``TransmissionLeastSquares(photons)``;
        ``Poisson(background)``, ``TransmissionPoisson(photons, attenuation)``, ``SmoothedL1(smoothing)``.
    constraint: None, ``Nonnegative()`` or ``Box(lower, upper)``.
    noise_level: passed to ``regularizer.at`` for noise-conditioned models; or a tensor (batch,) of one for each sample
        of the batches to solve, which are bounded each with its own constants.
    minimiser: "global", or "local" for bounds of the error to the minimiser in a ball around the computed point, which
        exist without a modulus of the whole energy: for weakly convex regularizers and singular operators.

    The problem has a certificate when ``strong_convexity`` is positive.

    Raises
    ------
    ConfigError: an argument of another kind, or out of its range.
    ShapeError: a data term, a constraint or noise levels that do not fit the operator.
    OperatorError, AssumptionError: a data term that does not go with this operator, constraint or regularizer.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.TotalVariation(0.1))
    >>> problem.energy(torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8))  # for each sample of the batch
    tensor([32., 32.], grad_fn=...)
    """

    def __init__(
        self,
        operator: LinearOperator,
        regularizer: Regularizer,
        *,
        ridge: float | nn.Parameter = 0.0,
        data_term: DataTerm | None = None,
        constraint: Box | None = None,
        noise_level: float | Tensor | None = None,
        minimiser: Minimiser = "global",
    ) -> None:
        super().__init__()
        check_one_of(minimiser, ("global", "local"), "LowerLevelProblem(minimiser)")
        self.minimiser: Minimiser = minimiser
        _check_type(operator, LinearOperator, "operator", f"a LinearOperator: {_adapter(operator)}")
        _check_type(regularizer, Regularizer, "regularizer", "a Regularizer (see learnreg.regularizers)")
        _check_ridge(ridge)
        self.operator, self.regularizer = operator, regularizer
        self.data_term = data_term if data_term is not None else LeastSquares()
        _check_type(self.data_term, DataTerm, "data_term", "LeastSquares(), or another data term such as Poisson(s)")
        if constraint is not None:
            _check_type(constraint, Box, "constraint", "Nonnegative() or Box(lower, upper)")
            constraint.check_domain(operator.domain_shape)
        name = "LowerLevelProblem(noise_level=...)"
        self.constraint = constraint
        self.noise_level = None if noise_level is None else checked_level(noise_level, name)
        self.ridge = ridge
        operator.check_domain(torch.empty(1, *operator.domain_shape))
        self.data_term.check_range(operator.range_shape)
        self.data_term.check_constraint(constraint)
        self.data_term.check_operator(operator)

    def extra_repr(self) -> str:
        noise = "" if self.noise_level is None else f", noise_level={brief(self.noise_level)}"
        return f"ridge={self.ridge_value:g}{noise}{'' if self.minimiser == 'global' else ', minimiser=local'}"

    # ---- the definition ----------------------------------------------------------------------------------------------

    @full_precision
    def energy(self, x: Tensor, b: Tensor) -> Tensor:
        """The lower-level objective, (batch,): +inf outside the constraint; twice differentiable where R is."""
        self.operator.check_domain(x)
        self.operator.check_range(b, "b")
        check_images(x, "x")
        check_images(b, "b")
        check_batch(x, b.shape[0], "x")
        energy = self.data_term.energy(self.operator(x), b) + self.active_regularizer.value(x)
        if isinstance(self.ridge, Tensor) or self.ridge > 0:
            energy = energy + 0.5 * self.ridge * sum_samples(x * x)
        return energy if self.constraint is None else energy + self.constraint.value(x)

    @property
    def active_regularizer(self) -> Regularizer:
        """The regularizer at the problem's noise level."""
        return self.regularizer if self.noise_level is None else self.regularizer.at(self.noise_level)

    @property
    def strong_convexity(self) -> float:
        """Modulus of the energy in x from the data term and the ridge, less what a weakly convex regularizer takes of
        it; 0 when none is known. *Rigorous bound.*"""
        return min(max(0.0, part.modulus(self.data_term) - part.concavity) for part in self.frozen().levels())

    @property
    def ridge_value(self) -> float:
        return float(self.ridge.detach()) if isinstance(self.ridge, Tensor) else float(self.ridge)

    # ---- learnable parameters --------------------------------------------------------------------------------------

    def learnable(self) -> dict[str, nn.Parameter]:
        """Parameters that require a gradient: the regularizer's by their own names, then ``operator.<name>``,
        ``data_term.<name>`` and ``ridge``; one that stands in several places by its first name alone."""
        found: dict[str, nn.Parameter] = {}
        for name, p in self._all_parameters():
            if name in found:
                raise ConfigError(f"two parameters are called {name!r}; rename the regularizer's submodule.")
            if p.requires_grad and all(p is not other for other in found.values()):
                found[name] = p
        return found

    def _all_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.regularizer.named_parameters()
        for name, p in self.operator.named_parameters():
            yield f"operator.{name}", p
        for name, p in self.data_term.named_parameters():
            yield f"data_term.{name}", p
        if isinstance(self.ridge, nn.Parameter):
            yield "ridge", self.ridge

    @torch.no_grad()
    def project_(self) -> None:
        """Project all parameters onto their admissible sets, after an accepted step: those of the regularizer by its
        own rule, weights of the data term and the ridge to >= 0."""
        self.regularizer.project_()
        self.data_term.project_()
        if isinstance(self.ridge, Tensor):
            self.ridge.clamp_(min=0.0)

    # ---- for solvers and certificates ------------------------------------------------------------------------------

    def saddle_terms(self, dtype: torch.dtype, latent_scale: float = 1.0) -> SaddleTerms:
        """The regularizer's operator and potential on the image shape, with latent variables over their
        scale; differentiable in the parameters. Of a chain those of its first problem."""
        active = self.active_regularizer
        chain = active.chain()
        base = active if chain is None else chain.base
        terms = base.saddle_terms(self.operator.domain_shape).at(latent_scale)
        return replace(terms, potential=terms.potential.to(dtype))

    def frozen(self) -> FrozenProblem:
        """The problem at its present parameters, which it clones: what happens to them later does not change it.

        Raises
        ------
        AssumptionError: non-finite parameters. ShapeError: parameters in half precision.
        """
        for name, p in self._all_parameters():
            check_precision(p, f"parameter {name}")
            if not bool(torch.isfinite(p).all()):
                raise AssumptionError(f"parameter {name} has NaN or infinite entries; restore an earlier model.")
        originals = self.learnable()
        with torch.inference_mode(False):
            twins = Twins()
            regularizer = twins.module(self.regularizer)
            frozen = FrozenProblem(
                operator=twins.module(self.operator),
                regularizer=regularizer if self.noise_level is None else regularizer.at(self.noise_level),
                data_term=twins.module(self.data_term),
                ridge=twins.parameter(self.ridge) if isinstance(self.ridge, nn.Parameter) else self.ridge,
                constraint=Unconstrained() if self.constraint is None else self.constraint,
                parameters={name: twins.parameter(p) for name, p in originals.items()},
                originals=originals,
                minimiser=self.minimiser,
            )
        if any(isinstance(m, Regularizer) and not is_own_class(type(m)) for m in regularizer.modules()):
            frozen.settle()
        return frozen

    def instance(self, b: Tensor) -> Instance:
        """The problem at its present parameters and data b (batch, *range_shape), see :meth:`FrozenProblem.at`."""
        return self.frozen().at(b)


def freeze(problem: LowerLevelProblem | FrozenProblem) -> FrozenProblem:
    """The problem at its present parameters; ConfigError for something else."""
    kinds = (LowerLevelProblem, FrozenProblem)
    expected = "lr.LowerLevelProblem(operator, regularizer); of an lr.BilevelProblem call its own methods"
    check_type(problem, kinds, "problem", expected)
    return problem.frozen()


def _check_ridge(ridge: object) -> None:
    """ConfigError unless it is one finite number >= 0."""
    if isinstance(ridge, Tensor):
        given_tensor(ridge, "LowerLevelProblem(ridge)")
        if ridge.numel() == 1:
            ridge = float(ridge.detach())
    real_number(ridge, "LowerLevelProblem(ridge)", least=0.0)


_ADAPTERS = {
    "odl": "from_odl(operator)",
    "scipy": "from_scipy(matrix, domain_shape, range_shape)",
    "pylops": "from_pylops(operator)",
    "astra": "from_astra(projector)",
}
"""By the package of an object."""


def _adapter(value: object) -> str:
    """What makes a LinearOperator of an object of another kind."""
    package = type(value).__module__.partition(".")[0]
    if isinstance(value, type):
        advice = f"{value.__name__}(...), an object of the class"
    elif hasattr(value, "A") and hasattr(value, "A_adjoint"):
        advice = "from_deepinv(physics, domain_shape)"
    elif package in _ADAPTERS:
        advice = _ADAPTERS[package]
    elif isinstance(value, Tensor) or package == "numpy":
        advice = (
            "Inpainting(mask), Blur(kernel, domain_shape) or, for a matrix as NumPy array, from_scipy(matrix, "
            "domain_shape, range_shape)"
        )
    else:
        advice = "from_callables(forward, adjoint, domain_shape, range_shape), or another one"
    return f"{advice} of learnreg.operators"


def _check_type(value: object, kind: type, name: str, expected: str) -> None:
    if kind is Regularizer and isinstance(value, nn.Module) and not isinstance(value, Regularizer):
        expected += (
            ": for an energy of your own subclass lr.Regularizer instead of nn.Module, and define value(self, x)"
        )
    check_type(value, kind, f"LowerLevelProblem({name}=...)", expected)
