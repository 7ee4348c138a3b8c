"""Data terms that are not quadratic: likelihoods of counts, and a residual that outliers move little.

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
from learnreg.linear.arguments import check_flag, given_tensor, real_number
from learnreg.linear.operator import LinearOperator
from learnreg.linear.stack import Stack
from learnreg.lower_level.constraints import Box
from learnreg.lower_level.data_terms import (
    DUALISED,
    DataTerm,
    LeastSquares,
    Range,
    TransmissionLeastSquares,
    WeightedLeastSquares,
)
from learnreg.lower_level.quadratic import Quadratic, quadratic_of
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.potentials.measured import KullbackLeibler, Measured, ShiftedPseudoHuber, TransmissionLikelihood
from learnreg.potentials.stacked_proximal import stacked
from learnreg.result import brief

__all__ = ["DATA_TERMS", "DualisedTerm", "Poisson", "SmoothedL1", "TransmissionPoisson"]

_LEAST = 1e-6
"""What learnable numbers stay above."""

_LEAST_LOGARITHM = -1e4
"""Of a weight of 0, whose exponential is 0 again."""


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
        return torch.as_tensor(self.potential.floor, dtype=p.dtype, device=p.device)

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


class Poisson(DualisedTerm):
    """sum_j (A x)_j + s - b_j log((A x)_j + s): the negative logarithm of the likelihood of counts b, up to what b
    alone decides, whose expectation is A x + s. For x >= 0 and A >= 0; continued below A x = 0 by its quadratic.

    Parameters
    ----------
    background: s > 0, in counts. It bounds the curvature, b/s²: the smaller, the harder to solve.

    Source: Shepp and Vardi, IEEE Trans. Med. Imaging 1 (1982).

    Examples
    --------
    >>> A, R, inside = lr.operators.Identity((1, 4, 4)), lr.regularizers.TotalVariation(), lr.Nonnegative()
    >>> problem = lr.LowerLevelProblem(A, R, data_term=lr.Poisson(1.0), constraint=inside)
    >>> problem.energy(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)).detach()  # 16 (s - b log s)
    tensor([16.])
    """

    kind = KullbackLeibler
    nonnegative = True

    def __init__(self, background: float | Tensor) -> None:
        super().__init__(background=background)

    def sensitivity(self) -> float:
        """∂D'/∂b = -1/(t + s)."""
        return 1.0 / float(self.numbers["background"].detach().min())

    def linearised(self, b: Tensor) -> tuple[Tensor, Tensor]:
        background = self.numbers["background"].to(b)
        return (b - background).clamp_min(0.0), 1.0 / torch.maximum(b, background)


class TransmissionPoisson(DualisedTerm):
    """(exp(m r)/(N m²)) sum_j [N exp(-m (A x)_j) + b_j m (A x)_j]: the negative logarithm of the likelihood of counts b
    behind an object, up to what b alone decides, scaled to a curvature of 1 where A x is the reference r. For x >= 0
    and A >= 0; continued below A x = 0 by its quadratic.

    Parameters
    ----------
    photons: N > 0, the expected count of a ray that meets nothing. attenuation: m > 0, line integral without dimension
        per unit of A x. reference: r, in units of A x; 0 leaves 1/(N m²) before the sum.
    line_integrals: b are the line integrals -log(counts/N)/m that scans are stored as, in units of A x, and the counts
        follow from them; N and m are not learned then.

    Source: Lange and Carson, J. Comput. Assist. Tomogr. 8 (1984).

    Raises
    ------
    ConfigError: an argument that is out of its range, or of the wrong kind.

    Examples
    --------
    >>> data_term = lr.TransmissionPoisson(photons=1e4, attenuation=16.0)
    >>> A, inside = lr.operators.Identity((1, 4, 4)), lr.Nonnegative()
    >>> problem = lr.LowerLevelProblem(A, lr.regularizers.TotalVariation(), data_term=data_term, constraint=inside)
    >>> problem.energy(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 1e4)).shape
    torch.Size([1])
    """

    kind = TransmissionLikelihood
    nonnegative = True
    photons: Tensor
    attenuation: Tensor
    reference: Tensor

    def __init__(
        self,
        photons: float | Tensor,
        attenuation: float | Tensor = 1.0,
        reference: float | Tensor = 0.0,
        line_integrals: bool = False,
    ) -> None:
        super().__init__(photons=photons, attenuation=attenuation)
        name = type(self).__name__
        if not isinstance(reference, Tensor):
            reference = torch.tensor(real_number(reference, f"{name}(reference)"), dtype=torch.float64)
        self.register_buffer("reference", given_tensor(reference, f"{name}(reference)").detach())
        check_flag(line_integrals, f"{name}(line_integrals)")
        self.line_integrals = bool(line_integrals)
        if line_integrals and any(True for _ in self.parameters()):
            raise ConfigError(f"{name}(line_integrals=True): counts follow from photons and attenuation, so that they "
                              "cannot be learned; pass the counts as measurements.")  # fmt: skip

    @property
    def numbers(self) -> dict[str, Tensor]:
        return {**super().numbers, "reference": self.reference}

    def weighted(self, weights: Tensor | float) -> DataTerm:
        """A weight w is a reference that is log(w)/m further."""
        logarithms = torch.log(torch.as_tensor(weights, dtype=torch.float64)).clamp_min(_LEAST_LOGARITHM)
        reference = self.reference + logarithms / self.attenuation.detach().double()
        return TransmissionPoisson(self.photons, self.attenuation, reference, self.line_integrals)

    def _check_measurements(self, b: Tensor) -> None:
        if not self.line_integrals:
            super()._check_measurements(b)
        elif b.device.type != "meta" and not bool(torch.isfinite(self._counts(b)).all()):
            raise DataError(
                f"a ray has the line integral {float(b.min()):.6g}, for which no photons can be counted.",
                hint="Check the sign and the unit of the measurement, and `attenuation`.",
            )

    def _counts(self, b: Tensor) -> Tensor:
        if not self.line_integrals:
            return b
        photons, attenuation = self.photons.to(b), self.attenuation.to(b)
        return photons * torch.exp(-attenuation * b)

    def _potential(self, b: Tensor) -> Measured:
        return super()._potential(self._counts(b))

    def sensitivity(self) -> float:
        """∂D'/∂b = exp(m r)/(N m); of line integrals, which are any, nothing is known without them."""
        photons, m, r = (number.detach().double() for number in self.numbers.values())
        return math.inf if self.line_integrals else float((torch.exp(m * r) / (photons * m)).max())

    def sensitivity_at(self, potential: Measured) -> float:
        """Of line integrals exp(m (r - b))."""
        if not self.line_integrals:
            return self.sensitivity()
        photons, m, r = (number.detach().double() for number in self.numbers.values())
        return float((torch.exp(m * r) * potential.b / photons).max())

    def linearised(self, b: Tensor) -> tuple[Tensor, Tensor]:
        photons, m, r = (number.to(b) for number in self.numbers.values())
        counts = self._counts(b)
        share = (torch.maximum(counts, torch.full_like(counts, 0.5)) / photons).clamp_max(1.0)
        return -share.log() / m, share * torch.exp(m * r)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "line_integrals": self.line_integrals}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DataTerm:
        if set(tensors) != {"photons", "attenuation", "reference"}:
            raise ConfigError(f"{cls.__name__}: the file holds {sorted(tensors)}, not its numbers.")
        learned = {n: nn.Parameter(t) if n in config["learnable"] else t for n, t in tensors.items()}
        return cls(**learned, line_integrals=config["line_integrals"])


class SmoothedL1(DualisedTerm):
    """sum_j sqrt(p_j² + s²) - s of the residual p = A x - b: outliers, such as dead pixels, move the solution little.

    Parameters
    ----------
    smoothing: s > 0, in units of b.

    Examples
    --------
    >>> A = lr.operators.Identity((1, 4, 4))
    >>> problem = lr.LowerLevelProblem(A, lr.regularizers.TotalVariation(), data_term=lr.SmoothedL1(smoothing=0.1))
    >>> problem.energy(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)).detach()
    tensor([0.])
    """

    kind = ShiftedPseudoHuber

    def __init__(self, smoothing: float | Tensor) -> None:
        super().__init__(smoothing=smoothing)

    def sensitivity(self) -> float:
        return 1.0 / float(self.numbers["smoothing"].detach().min())

    def linearised(self, b: Tensor) -> tuple[Tensor, Tensor]:
        return b, torch.ones_like(b)


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


DATA_TERMS: dict[str, type[DataTerm]] = {
    "least-squares": LeastSquares,
    "weighted-least-squares": WeightedLeastSquares,
    "transmission-least-squares": TransmissionLeastSquares,
    "poisson": Poisson,
    "transmission-poisson": TransmissionPoisson,
    "smoothed-l1": SmoothedL1,
}
"""By the name in model files."""
