"""The data terms that are not quadratic: likelihoods of counts, and a residual that outliers move little."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, DataError
from learnreg.linear.arguments import check_flag, given_tensor, real_number
from learnreg.lower_level.data_terms import DataTerm, LeastSquares, TransmissionLeastSquares, WeightedLeastSquares
from learnreg.lower_level.dualised_terms import DualisedTerm
from learnreg.potentials.measured import KullbackLeibler, Measured, ShiftedPseudoHuber, TransmissionLikelihood

__all__ = ["DATA_TERMS", "Poisson", "SmoothedL1", "TransmissionPoisson"]

_LEAST_LOGARITHM = -1e4
"""Of a weight of 0, whose exponential is 0 again."""


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


DATA_TERMS: dict[str, type[DataTerm]] = {
    "least-squares": LeastSquares,
    "weighted-least-squares": WeightedLeastSquares,
    "transmission-least-squares": TransmissionLeastSquares,
    "poisson": Poisson,
    "transmission-poisson": TransmissionPoisson,
    "smoothed-l1": SmoothedL1,
}
"""By the name in model files."""
