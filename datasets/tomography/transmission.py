"""From counts of photons to line integrals, and the statistical weights of the rays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.errors import ConfigError, DataError, ShapeError

__all__ = ["PHOTON_FLOOR", "LineIntegrals", "line_integrals", "statistical_weights"]

#: Counts below it, which have no logarithm or hardly any meaning, are replaced by it.
PHOTON_FLOOR = 0.1


@dataclass(frozen=True)
class LineIntegrals:
    """What `line_integrals` found.

    Attributes
    ----------
    values: -log of the transmission, shape of the counts. Negative where a ray counted more than the flat field: noise
        in air, kept so that its mean stays zero.
    floored: how many rays had a net count below the floor.
    floor: that net count.
    """

    values: Tensor
    floored: int
    floor: float

    @property
    def floored_fraction(self) -> float:
        return self.floored / self.values.numel()


def line_integrals(
    counts: Tensor, flat: Tensor | float, dark: Tensor | float = 0.0, floor: float = PHOTON_FLOOR
) -> LineIntegrals:
    """-log((counts - dark) / (flat - dark)), the line integrals of attenuation by the law of Beer and Lambert.

    A net count (counts - dark) below ``floor`` is replaced by ``floor``; the result says how many were. The dtype is
    that of ``counts`` if it is float32 or float64, otherwise float64.

    Parameters
    ----------
    counts: (..., angles, detectors), finite and >= 0; any unit in which the three agree.
    flat: counts without an object: a number, or a tensor that broadcasts against the counts, (detectors,) for example.
    dark: counts without radiation, likewise.
    floor: the smallest net count, in the unit of the counts.

    Raises
    ------
    ShapeError: ``flat`` or ``dark`` do not broadcast against ``counts``.
    DataError: counts, flat or dark that are not finite or negative, or flat <= dark.
    ConfigError: ``floor`` is not positive.
    """
    if not (math.isfinite(floor) and floor > 0):
        raise ConfigError(f"floor={floor!r} must be a positive count.")
    counts = _check_counts(counts)
    flat, dark = _reference("flat", flat, counts), _reference("dark", dark, counts)
    open_beam = flat - dark
    if bool((open_beam <= 0).any()):
        where = int((open_beam <= 0).sum())
        raise DataError(
            f"flat <= dark at {where} of {open_beam.numel()} places: flat is {_span(flat)}, dark is {_span(dark)}.",
            hint="Check that they are not exchanged; leave dead detectors out.",
        )
    net = counts - dark
    low = net < floor
    values = open_beam.log() - net.clamp(min=floor).log()
    return LineIntegrals(values, int(low.sum()), floor)


def statistical_weights(
    counts: Tensor,
    dark: Tensor | float = 0.0,
    electronic: float = 0.0,
    floor: float = PHOTON_FLOOR,
    normalise: bool = True,
) -> Tensor:
    """Weights of the rays for ``WeightedLeastSquares``: inverse variances of line integrals, with mean 1.

    With the net count N = counts - dark of variance N + electronic² (Poisson photons and the noise of the electronics),
    the line integral -log N has the variance (N + electronic²) / N² to first order, hence w = N² / (N + electronic²);
    without electronic noise w = N. Net counts below ``floor`` count as ``floor``, as in `line_integrals`.

    Counts must be in photons: multiply the readings of an integrating detector by its photons per unit first. The mean
    is taken over everything that is given; ``normalise=False`` returns the inverse variances themselves (an *estimate*:
    measured counts stand for expected ones).

    Source: Sauer, Bouman, "A local update strategy for iterative reconstruction from projections", IEEE Trans. Signal
    Process. 41 (1993); Thibault, Bouman, Sauer, Hsieh, "A recursive filter for noise reduction in statistical iterative
    tomographic imaging", Proc. SPIE 6065 (2006).

    Raises
    ------
    ShapeError, DataError: as in `line_integrals`. ConfigError: ``floor`` or ``electronic`` out of range.
    """
    if not (math.isfinite(floor) and floor > 0):
        raise ConfigError(f"floor={floor!r} must be a positive count.")
    if not (math.isfinite(electronic) and electronic >= 0):
        raise ConfigError(f"electronic={electronic!r} must be >= 0: a standard deviation in photons.")
    counts = _check_counts(counts)
    net = (counts - _reference("dark", dark, counts)).clamp(min=floor)
    weights = net / (1.0 + electronic**2 / net)
    return weights / weights.mean() if normalise else weights


def _check_counts(counts: Tensor) -> Tensor:
    if not isinstance(counts, Tensor) or counts.dim() < 2 or counts.numel() == 0:
        what = f"shape {tuple(counts.shape)}" if isinstance(counts, Tensor) else type(counts).__name__
        raise ShapeError(f"counts: got {what}, expected a tensor (..., angles, detectors).")
    if counts.is_complex():
        raise ShapeError(f"counts: got {counts.dtype}, expected real numbers.")
    counts = counts if counts.dtype in {torch.float32, torch.float64} else counts.double()
    _check_values("counts", counts)
    return counts


def _reference(name: str, value: Tensor | float, counts: Tensor) -> Tensor:
    reference = torch.as_tensor(value, dtype=counts.dtype, device=counts.device)
    try:
        reference.expand(counts.shape)
    except RuntimeError as error:
        raise ShapeError(
            f"{name} of shape {tuple(reference.shape)} does not broadcast against counts of {tuple(counts.shape)}."
        ) from error
    _check_values(name, reference)
    return reference


def _check_values(name: str, values: Tensor) -> None:
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise DataError(f"{name}: {bad} of {values.numel()} values are NaN or infinite.", hint="Repair them first.")
    negative = int((values < 0).sum())
    if negative:
        raise DataError(
            f"{name}: {negative} of {values.numel()} values are negative, the smallest is {float(values.min()):.6g}.",
            hint="Counts are >= 0. Pass raw counts, not line integrals, and the dark field as dark=.",
        )


def _span(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
