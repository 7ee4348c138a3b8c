"""What data terms that are not quadratic have in common (``likelihoods.py``).

Each joins the potential, with A as one more block of K: sum_j D((A x)_j; b_j), D convex with a bounded curvature. What
strong convexity the constraint gives it is left to the quadratic part of the energy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from learnreg.errors import AssumptionError, ConfigError, DataError, ShapeError
from learnreg.kernels.numbers import number_like
from learnreg.linear.arguments import given_tensor
from learnreg.linear.operator import LinearOperator
from learnreg.linear.stack import Stack
from learnreg.lower_level.constraints import Box
from learnreg.lower_level.data_terms import (
    DUALISED,
    DataTerm,
    Range,
)
from learnreg.lower_level.quadratic import Quadratic, quadratic_of
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.potentials.measured import Measured
from learnreg.potentials.stacked_proximal import stacked
from learnreg.result import brief

__all__ = ["DualisedTerm"]

_LEAST = 1e-6
"""What learnable numbers stay above."""


class DualisedTerm(DataTerm):
    """A sum over measurements of a function with positive numbers, each a float, or a tensor that broadcasts against
    the range of A; an nn.Parameter is learnable and appears in hypergradients as ``data_term.<name>``."""

    dualised = True
    kind: ClassVar[type[Measured]]
    nonnegative: ClassVar[bool] = False
    """Whether A x >= 0 is needed, and the measurements are counts."""

    def __init__(self, **numbers: float | Tensor) -> None:
        super().__init__()
        for name, number in numbers.items():
            value = _positive(number, f"{type(self).__name__}({name})")
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)

    @property
    def numbers(self) -> dict[str, Tensor]:
        """Its parameters by name."""
        return {name: getattr(self, name) for name in self.kind.parameter_names}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={brief(value)}" for name, value in self.numbers.items())

    # ---- the problem -------------------------------------------------------------------------------------------------

    def check_range(self, range_shape: tuple[int, ...]) -> None:
        for name, value in self.numbers.items():
            try:
                fits = torch.broadcast_shapes(tuple(value.shape), range_shape) == range_shape  # type: ignore[no-untyped-call]
            except RuntimeError:
                fits = False
            if not fits:
                raise ShapeError(
                    f"{type(self).__name__}({name}): shape {tuple(value.shape)} does not broadcast against the "
                    f"operator's range {range_shape}."
                )

    def check_constraint(self, constraint: Box | None) -> None:
        if self.nonnegative and (constraint is None or not bool((constraint.lower >= 0).all())):
            raise ConfigError(
                f"{type(self).__name__} is the likelihood of counts from images x >= 0, but got "
                f"{'no constraint' if constraint is None else repr(constraint)}; pass constraint=lr.Nonnegative(), or "
                "a Box with lower >= 0."
            )

    def check_operator(self, operator: LinearOperator) -> None:
        if self.nonnegative and not operator.is_nonnegative():
            raise AssumptionError(
                f"{type(self).__name__} needs A x >= 0 for every image x >= 0, but {type(operator).__name__} has "
                "negative entries, or is not known to have none; where you know that it has none say "
                "operator.nonnegative = True, else take lr.LeastSquares() or lr.SmoothedL1(smoothing)."
            )

    @torch.no_grad()
    def project_(self) -> None:
        """Learnable numbers to at least 1e-6."""
        for p in self.parameters():
            p.clamp_(min=_LEAST)

    # ---- at measurements ---------------------------------------------------------------------------------------------

    def at(self, b: Tensor, known: Callable[[], Range | None] = lambda: None) -> DataTerm:
        """AssumptionError: numbers that are not positive any more. DataError: counts below 0."""
        for name, value in self.numbers.items() if b.device.type != "meta" else ():
            if name in self.kind.parameter_names and not bool((value > 0).all()):
                raise AssumptionError(
                    f"{type(self).__name__} has {name} down to {float(value.detach().min()):.3g}, but it has to be "
                    "> 0: call problem.project_() after each step of an optimizer."
                )
        self._check_measurements(b)
        potential, found = self._potential(b), known()
        return _AtMeasurements(potential if found is None else potential.within(*found), self)

    def _check_measurements(self, b: Tensor) -> None:
        if self.nonnegative and b.device.type != "meta" and bool((b < 0).any()):
            raise DataError(
                f"{type(self).__name__}: counts are >= 0, but b has entries down to {float(b.min()):.6g}.",
                hint="Pass the counts themselves, not line integrals or corrected data.",
            )

    def energy(self, response: Tensor, b: Tensor) -> Tensor:
        self._check_measurements(b)
        return self._potential(b).to(response.dtype).value(response)

    def slope(self, response: Tensor, b: Tensor) -> Tensor:
        return self._potential(b).to(response.dtype).grad(response)

    def _potential(self, b: Tensor) -> Measured:
        return self.kind(b, 0.0 if self.nonnegative else -torch.inf, **self.numbers)

    def weighted(self, weights: Tensor | float) -> DataTerm:
        raise ConfigError(f"{type(self).__name__} has no weights of measurements: use it without --data-weight.")

    def weight_range(self) -> tuple[float, float]:
        """What is known without measurements and a constraint."""
        return 0.0, math.inf

    def sensitivity_at(self, potential: Measured) -> float:
        """That at measurements."""
        return self.sensitivity()

    def linearised(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """The responses that fit b best, and D'' there, about."""
        raise NotImplementedError

    # ---- in model files ----------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        return {"learnable": [name for name, value in self.numbers.items() if isinstance(value, nn.Parameter)]}

    def stored_tensors(self) -> dict[str, Tensor]:
        return self.numbers

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DataTerm:
        if set(tensors) != set(cls.kind.parameter_names):
            raise ConfigError(f"{cls.__name__}: the file holds {sorted(tensors)}, not {cls.kind.parameter_names}.")
        return cls(**{n: nn.Parameter(t) if n in config["learnable"] else t for n, t in tensors.items()})


class _AtMeasurements(DataTerm):
    """A dualised data term with its measurements."""

    dualised = True

    def __init__(self, potential: Measured, term: DualisedTerm) -> None:
        super().__init__()
        self.__dict__["potential"], self.__dict__["term"] = potential, term

    @property
    def potential(self) -> Measured:
        potential: Measured = self.__dict__["potential"]
        return potential

    @property
    def term(self) -> DualisedTerm:
        term: DualisedTerm = self.__dict__["term"]
        return term

    def select(self, index: Tensor | slice) -> DataTerm:
        return _AtMeasurements(self.potential.select(index), self.term)

    def weights_for(self, p: Tensor) -> Tensor:
        return number_like(self.potential.floor, p)

    def weigh(self, p: Tensor) -> Tensor:
        return torch.zeros_like(p)

    def sensitivity(self) -> float:
        return self.term.sensitivity_at(self.potential)

    def weight_range(self) -> tuple[float, float]:
        floor = torch.as_tensor(self.potential.floor).detach()
        return float(floor.min()), float(floor.max())

    def joins(self, terms: SaddleTerms, operator: LinearOperator) -> SaddleTerms:
        if terms.latent.channels:
            raise ConfigError(
                f"{type(self.term).__name__} does not carry the latent variables of the regularizer; use it in another "
                "form (InputConvexNetwork: form='smooth'), or a data term of squares."
            )
        names = ("", DUALISED)
        K = Stack((terms.operator, operator), names)
        f = stacked((terms.potential, self.potential), [A.range_shape for A in K.parts], names)
        return SaddleTerms(K, f)

    def start(self, quadratic: Quadratic, rhs: Tensor, b: Tensor) -> Tensor:
        """That of least squares with the responses that fit best, weighted by the curvature there."""
        fitted, weights = self.term.linearised(b)
        squares = quadratic_of(quadratic.forward, weights.detach(), quadratic.ridge, b)
        return squares.start(squares.pull(weights * fitted), fitted)


def _positive(number: float | Tensor, name: str) -> Tensor:
    """A positive finite tensor; a number becomes one in float64, which casts exactly to what it is used in."""
    if isinstance(number, bool):
        raise ConfigError(f"{name}: got {number}, expected a positive number or a tensor.")
    plain = isinstance(number, (int, float))
    value = torch.tensor(number, dtype=torch.float64) if plain else given_tensor(number, name)
    value = value if value.is_floating_point() else value.double()
    if not bool(torch.isfinite(value).all()) or not bool((value > 0).all()):
        raise ConfigError(f"{name}: got {brief(value)}, expected positive finite numbers.")
    return value
