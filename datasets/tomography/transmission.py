"""From counts of photons to line integrals, and the statistical weights of the rays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.errors import ConfigError, DataError, ShapeError
from learnreg.linear.arguments import check_flag, check_real, given_tensor, real_number
from learnreg.operators.tomography.limits import checked_indices

__all__ = ["PHOTON_FLOOR", "LineIntegrals", "line_integrals", "statistical_weights"]

#: Counts below it, which have no logarithm or hardly any meaning, are replaced by it.
PHOTON_FLOOR = 0.1

_NAMED = 20
_MOST_PHOTONS = 2.0**53


@dataclass(frozen=True)
class LineIntegrals:
    """What `line_integrals` found.

    Attributes
    ----------
    values: -log of the transmission, shape of the counts. Negative where a ray counted more than the flat field: noise
        in air, kept so that its mean stays zero.
    floored: how many rays had a net count below the floor.
    floor: that net count.

    Examples
    --------
    >>> found = lr.datasets.line_integrals(torch.full((1, 1, 2, 3), 50.0), flat=100.0)
    >>> round(float(found.values[0, 0, 0, 0]), 4)  # log 2
    0.6931
    """

    values: Tensor
    floored: int
    floor: float

    @property
    def floored_fraction(self) -> float:
        return self.floored / self.values.numel()


def line_integrals(
    counts: Tensor,
    flat: Tensor | float,
    dark: Tensor | float = 0.0,
    floor: float = PHOTON_FLOOR,
    dead_detectors: Sequence[int] = (),
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
    dead_detectors: numbers, from 0, of detectors that measure nothing: what the three hold there is not looked at, and
        the line integrals are 0, with which a projector of the same ``dead_detectors`` reconstructs (docs/geometry.md).

    Raises
    ------
    ShapeError: ``flat`` or ``dark`` do not broadcast against ``counts``.
    DataError: counts, flat or dark that are not finite or negative, or flat <= dark.
    ConfigError: ``floor`` is not positive; a dead detector that is out of range, named twice, or all of them.
    """
    floor = _count(floor, "line_integrals(floor)", above=0.0)
    dead = _dead(counts, dead_detectors, "line_integrals")
    counts = _check_counts(counts, dead)
    flat, dark = _reference("flat", flat, counts, dead), _reference("dark", dark, counts, dead)
    open_beam = flat - dark
    wrong = open_beam <= 0
    if dead.numel():
        wrong = wrong.expand(counts.shape).index_fill(-1, dead, False)
        open_beam = open_beam.expand(counts.shape).index_fill(-1, dead, 1.0)
    if bool(wrong.any()):
        raise DataError(
            f"flat <= dark at {int(wrong.sum())} of {wrong.numel()} places: flat is {_span(flat)}, dark is "
            f"{_span(dark)}.{_columns(wrong)}",
            hint="Check that they are not exchanged. Dead detectors are named by dead_detectors=[...] here and in "
            "geometry files, or --dead-detectors of learnreg reconstruct.",
        )
    net = (counts - dark).index_fill(-1, dead, 1.0)
    low = net < floor
    values = (open_beam.log() - net.clamp(min=floor).log()).index_fill(-1, dead, 0.0)
    return LineIntegrals(values, int(low.sum()), floor)


def statistical_weights(
    counts: Tensor,
    dark: Tensor | float = 0.0,
    electronic: float = 0.0,
    floor: float = PHOTON_FLOOR,
    normalise: bool = True,
    dead_detectors: Sequence[int] = (),
) -> Tensor:
    """Weights of the rays for ``WeightedLeastSquares``: inverse variances of line integrals, with mean 1.

    With the net count N = counts - dark of variance N + electronic² (Poisson photons and the noise of the electronics),
    the line integral -log N has the variance (N + electronic²) / N² to first order, hence w = N² / (N + electronic²);
    without electronic noise w = N. Net counts below ``floor`` count as ``floor``, as in `line_integrals`.

    Counts must be in photons: multiply the readings of an integrating detector by its photons per unit first. The mean
    is taken over everything that is given but ``dead_detectors``, whose weights are 0; ``normalise=False`` returns the
    inverse variances themselves (an *estimate*: measured counts stand for expected ones).

    Source: Sauer, Bouman, "A local update strategy for iterative reconstruction from projections", IEEE Trans. Signal
    Process. 41 (1993); Thibault, Bouman, Sauer, Hsieh, "A recursive filter for noise reduction in statistical iterative
    tomographic imaging", Proc. SPIE 6065 (2006).

    Parameters
    ----------
    counts, dark: photons behind the object, and without the source; as of ``line_integrals``.

    Raises
    ------
    ShapeError, DataError: as in `line_integrals`. ConfigError: ``floor`` or ``electronic`` out of range, or a dead
    detector as there.
    """
    floor = _count(floor, "statistical_weights(floor)", above=0.0)
    electronic = _count(electronic, "statistical_weights(electronic)")
    check_flag(normalise, "statistical_weights(normalise)")
    dead = _dead(counts, dead_detectors, "statistical_weights")
    counts = _check_counts(counts, dead)
    net = (counts - _reference("dark", dark, counts, dead)).clamp(min=floor)
    weights = (net / (1.0 + electronic**2 / net)).index_fill(-1, dead, 0.0)
    live = counts.shape[-1] - dead.numel()
    return weights / (weights.mean() * counts.shape[-1] / live) if normalise else weights


def _count(value: float, name: str, above: float = -math.inf) -> float:
    """A number of photons, at least 0; ConfigError beyond those that float64 counts one by one."""
    if (count := real_number(value, name, above=above, least=0.0)) > _MOST_PHOTONS:
        raise ConfigError(f"{name}: got {count:g}, expected at most {_MOST_PHOTONS:g}.")
    return count


def _dead(counts: Tensor, numbers: Sequence[int], call: str) -> Tensor:
    """The numbers of dead detectors as an index, empty without."""
    if not isinstance(counts, Tensor) or counts.is_nested or counts.dim() == 0:
        return torch.empty(0, dtype=torch.long)
    found = checked_indices(numbers, counts.shape[-1], f"{call}(dead_detectors=", "detectors")
    return torch.tensor(found, dtype=torch.long, device=counts.device)


def _columns(wrong: Tensor) -> str:
    """Which detectors are meant, where they are few and all places of them are."""
    if wrong.dim() == 0 or wrong.shape[-1] == 1:
        return ""
    columns = torch.nonzero(wrong.reshape(-1, wrong.shape[-1]).all(0)).flatten().tolist()
    named = f" Detectors, counted from 0: {', '.join(map(str, columns))}."
    return named if 0 < len(columns) <= _NAMED else ""


def _check_counts(counts: Tensor, dead: Tensor) -> Tensor:
    check_real(counts, "counts", "(..., angles, detectors)")
    if counts.dim() < 2 or counts.numel() == 0:
        raise ShapeError(f"counts: got shape {tuple(counts.shape)}, expected a tensor (..., angles, detectors).")
    counts = counts if counts.dtype in {torch.float32, torch.float64} else counts.double()
    counts = counts.index_fill(-1, dead, 0.0)
    _check_values("counts", counts)
    return counts


def _reference(name: str, value: Tensor | float, counts: Tensor, dead: Tensor) -> Tensor:
    reference = given_tensor(value, name).to(counts)
    try:
        reference.expand(counts.shape)
    except RuntimeError as error:
        raise ShapeError(
            f"{name} of shape {tuple(reference.shape)} does not broadcast against counts of {tuple(counts.shape)}."
        ) from error
    if dead.numel() and reference.dim() and reference.shape[-1] == counts.shape[-1]:
        reference = reference.index_fill(-1, dead, 0.0)
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
