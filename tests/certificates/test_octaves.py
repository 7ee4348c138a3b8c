"""The bound of a vector by entries and by a shared budget: against the best threshold, and the kernel against torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from learnreg.certificates.octaves import Octaves
from learnreg.kernels import loader
from learnreg.potentials.curvature import CurvatureInterval

LIMITS = (1e-3, 1e-1)


def draw(generator: torch.Generator, batch: int = 3, shape: tuple[int, ...] = (4, 5, 7)) -> tuple[Any, ...]:
    """Interval, size and budget with entries over many orders of magnitude, some of them 0 and some unlimited."""

    def positive(spread: float) -> Tensor:
        return torch.exp(spread * torch.randn(batch, *shape, generator=generator, dtype=torch.float64))

    low, size, third = positive(4.0), positive(6.0), positive(6.0)
    for part, value in ((low, 0.0), (size, 0.0), (third, math.inf)):
        part[torch.rand(part.shape, generator=generator) < 0.1] = value
    change, ratio = positive(3.0), positive(3.0)
    interval = CurvatureInterval(low, low, change, ratio, third, torch.ones(batch, dtype=torch.bool))
    on_low, on_all = (torch.rand(batch, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
    return interval, size, on_low, on_all


def copied(interval: CurvatureInterval) -> CurvatureInterval:
    return CurvatureInterval(
        *(getattr(interval, n).clone() for n in ("low", "high", "change", "ratio", "third")), interval.smooth
    )


def best_threshold(a: Tensor, b: Tensor, kept: Tensor) -> float:
    """Over all thresholds, for one sample."""
    a, b = a[kept], b[kept]
    thresholds = [0.0, *b[torch.isfinite(b)].tolist()]
    return min(math.sqrt(float((a[b > c] ** 2).sum()) + c**2) for c in thresholds)


def entries(interval: CurvatureInterval, size: Tensor, on_low: Tensor, on_all: Tensor) -> tuple[Tensor, ...]:
    still = size == 0
    budget = on_low.view(-1, 1, 1, 1) * interval.low + on_all.view(-1, 1, 1, 1)
    b = torch.where(still, 0.0, interval.third * size / budget.sqrt())
    scaled = torch.where(b == 0, 0.0, b / interval.low.sqrt())
    return torch.where(still, 0.0, interval.change * size), b, torch.where(still, 0.0, interval.ratio * size), scaled


@pytest.mark.parametrize("compiled", [True, False])
def test_bounds_are_within_an_octave_of_the_best_threshold(
    compiled: bool, rotating_generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(loader, "numba_works", lambda: False)
    for _ in range(20):
        interval, size, on_low, on_all = draw(rotating_generator)
        a, b, own, scaled = entries(interval, size, on_low, on_all)
        with torch.no_grad():
            found = Octaves.spread(copied(interval), size, on_low, on_all, LIMITS)
        kinds = sum((interval.low >= limit).long() for limit in LIMITS)
        for which, (alone, together) in enumerate(((a, b), (own, scaled))):
            for classes in (slice(None), slice(0, 1), slice(1, None), slice(0, 2), slice(2, None)):
                kept = torch.isin(kinds, torch.arange(3)[classes])
                bounds = found.joint(bool(which), classes)
                for i, bound in enumerate(bounds.tolist()):
                    best = best_threshold(alone[i], together[i], kept[i])
                    assert best * (1.0 - 1e-13) <= bound <= 2.0 * best


def test_the_kernel_agrees_with_torch(rotating_generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    if not loader.numba_works():
        pytest.skip("numba is not installed")
    interval, size, on_low, on_all = draw(rotating_generator, 2, (3, 40, 33))
    fast, slow = copied(interval), copied(interval)
    with torch.no_grad():
        by_kernel = Octaves.spread(fast, size, on_low, on_all, LIMITS)
        monkeypatch.setattr(loader, "numba_works", lambda: False)
        by_torch = Octaves.spread(slow, size, on_low, on_all, LIMITS)
    for name in ("change", "third"):
        torch.testing.assert_close(getattr(fast, name), getattr(slow, name), rtol=1e-14, atol=0.0)
    for kernel, torch_ in ((by_kernel.squares, by_torch.squares), (by_kernel.peaks, by_torch.peaks)):
        torch.testing.assert_close(kernel.sum(3), torch_.sum(3), rtol=1e-12, atol=0.0)  # octaves may differ by rounding


@pytest.mark.parametrize("place", ["change", "third", "ratio", "size"])
@pytest.mark.parametrize("compiled", [True, False])
def test_nan_is_not_lost(place: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(loader, "numba_works", lambda: False)
    interval, size, on_low, on_all = draw(torch.Generator().manual_seed(0), 1)
    (size if place == "size" else getattr(interval, place))[0, 1, 2, 3] = math.nan
    size[0, 1, 2, 3] = math.nan if place == "size" else 1.0
    with torch.no_grad():
        found = Octaves.spread(interval, size, on_low, on_all, LIMITS)
    bound = found.joint(place == "ratio")
    assert bool(bound.isnan().all()) or bool(bound.isinf().all())
