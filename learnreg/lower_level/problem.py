"""The lower-level problem: forward operator, data term, regularizer, ridge and constraint.

    energy(x, b) = D(A x - b) + R(x) + ridge/2 ‖x‖² (+inf outside the constraint)

``LowerLevelProblem`` is what users build; ``problem.frozen()`` is the same at its present parameters, for solvers and
certificates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from learnreg.errors import AssumptionError, ConfigError
from learnreg.linear.examination import is_own_class
from learnreg.linear.operator import LinearOperator
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.constraints import Box, Unconstrained
from learnreg.lower_level.data_terms import LeastSquares
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.regularizer import Regularizer, SaddleTerms
from learnreg.lower_level.twins import Twins

__all__ = ["LowerLevelProblem"]


class LowerLevelProblem(nn.Module):
    """½‖Ax - b‖² + R(x), or with another data term, a ridge and a constraint.

    Parameters
    ----------
    operator: the forward operator A.
    regularizer: R.
    ridge: r >= 0 adds r/2 ‖x‖² per sample; a scalar nn.Parameter is learnable and appears in hypergradients as
        ``ridge``.
    data_term: ``LeastSquares()`` (default), ``WeightedLeastSquares(weights)`` or ``TransmissionLeastSquares(photons)``.
    constraint: None, ``Nonnegative()`` or ``Box(lower, upper)``.
    noise_level: passed to ``regularizer.at`` for noise-conditioned models.

    The problem has a certificate when ``strong_convexity`` is positive.
    """

    def __init__(
        self,
        operator: LinearOperator,
        regularizer: Regularizer,
        *,
        ridge: float | nn.Parameter = 0.0,
        data_term: LeastSquares | None = None,
        constraint: Box | None = None,
        noise_level: float | None = None,
    ) -> None:
        super().__init__()
        _check_type(operator, LinearOperator, "operator", "a LinearOperator (see learnreg.operators)")
        _check_type(regularizer, Regularizer, "regularizer", "a Regularizer (see learnreg.regularizers)")
        value = float(ridge.detach()) if isinstance(ridge, Tensor) else float(ridge)
        if not (value >= 0 and math.isfinite(value)):
            raise ConfigError(f"LowerLevelProblem(ridge={value!r}): expected a finite number >= 0.")
        self.operator, self.regularizer = operator, regularizer
        self.data_term = data_term if data_term is not None else LeastSquares()
        _check_type(self.data_term, LeastSquares, "data_term", "LeastSquares() or WeightedLeastSquares(weights)")
        if constraint is not None:
            _check_type(constraint, Box, "constraint", "Nonnegative() or Box(lower, upper)")
        self.constraint, self.noise_level = constraint, noise_level
        self.ridge = ridge
        operator.check_domain(torch.empty(1, *operator.domain_shape))
        self.data_term.check_range(operator.range_shape)

    # ---- the definition ----------------------------------------------------------------------------------------------

    def energy(self, x: Tensor, b: Tensor) -> Tensor:
        """The lower-level objective, (batch,): +inf outside the constraint; twice differentiable where R is."""
        self.operator.check_domain(x)
        self.operator.check_range(b, "b")
        energy = self.data_term.at(b).value(self.operator(x) - b) + self.active_regularizer.value(x)
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
        frozen = self.frozen()
        return max(0.0, frozen.modulus(self.data_term) - frozen.concavity)

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
        scale; differentiable in the parameters."""
        terms = self.active_regularizer.saddle_terms(self.operator.domain_shape).at(latent_scale)
        return replace(terms, potential=terms.potential.to(dtype))

    def frozen(self) -> FrozenProblem:
        """The problem at its present parameters, which it clones: what happens to them later does not change it.

        Raises
        ------
        AssumptionError: non-finite parameters.
        """
        for name, p in self._all_parameters():
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
            )
        if any(isinstance(m, Regularizer) and not is_own_class(type(m)) for m in regularizer.modules()):
            frozen.settle()
        return frozen

    def instance(self, b: Tensor) -> Instance:
        """The problem at its present parameters and data b (batch, *range_shape), see :meth:`FrozenProblem.at`."""
        return self.frozen().at(b)


def _check_type(value: object, kind: type, name: str, expected: str) -> None:
    if not isinstance(value, kind):
        hint = ""
        if kind is Regularizer and isinstance(value, nn.Module):
            hint = " For an energy of your own subclass lr.Regularizer instead of nn.Module, and define value(self, x)."
        raise ConfigError(f"LowerLevelProblem({name}=...): got {type(value).__name__}, expected {expected}.{hint}")
