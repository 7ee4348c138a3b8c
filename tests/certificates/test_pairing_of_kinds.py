"""Norms of the gradients of filters on images of several channels and other dimensions, against dense matrices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import registry
import torch
from torch import Tensor

from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.grouped_filter_bank import GroupedFilterBank

BANKS: dict[str, tuple[type[FilterBank], tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "each channel": (FilterBank, (2, 3, 2), (3, 4, 3), {}),
    "colours": (FilterBank, (2, 3, 2, 2), (3, 4, 3), {}),
    "signals": (FilterBank, (2, 3), (2, 6), {}),
    "volumes": (FilterBank, (2, 2, 2, 2), (2, 3, 3, 2), {}),
    "complex": (GroupedFilterBank, (1, 2, 3, 2), (2, 4, 3), {"over_channels": True}),
    "complex groups": (GroupedFilterBank, (2, 2, 2, 2), (2, 4, 3), {"over_channels": True}),
    "complex volumes": (GroupedFilterBank, (1, 1, 2, 2, 2), (2, 3, 2, 3), {"over_channels": True}),
}
SLACK = 1.0 + 1e-6


def gradients(bank: FilterBank, kind: Any, fixed: Tensor, side: str) -> Tensor:
    """u -> C(u, p), or p -> C(u, p), as a matrix, by autograd of <K u, p>."""
    build, filters, shape, options = kind
    unknowns = bank.domain_shape if side == "image" else bank.range_shape
    columns = []
    for unit in torch.eye(math.prod(unknowns), dtype=torch.float64):
        w = bank.filters.detach().reshape(filters).requires_grad_()
        u, p = (unit.reshape(1, *unknowns), fixed) if side == "image" else (fixed, unit.reshape(1, *unknowns))
        (gradient,) = torch.autograd.grad((build(w, shape, bank.boundary, **options)(u) * p).sum(), w)
        means = gradient.mean(tuple(range(1 - len(shape), 0)), keepdim=True)
        columns.append((gradient - means if bank.zero_mean else gradient).flatten())
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", BANKS)
@pytest.mark.parametrize("boundary", ["valid", "circular", "reflect"])
@pytest.mark.parametrize("zero_mean", [False, True])
@pytest.mark.sampled(share=0.2, by=("name",))
def test_norms_hold_and_are_close(
    name: str, boundary: str, zero_mean: bool, rotating_generator: torch.Generator
) -> None:
    kind = build, filters, shape, options = BANKS[name]
    randn = lambda *sides: torch.randn(sides, dtype=torch.float64, generator=rotating_generator)  # noqa: E731
    bank = build(randn(*filters), shape, boundary, zero_mean, **options)
    (pairing,) = bank.parameter_groups()
    traces = pairing.by_traces()
    u, p = randn(1, *shape), randn(1, *bank.range_shape)
    truth = float(torch.linalg.matrix_norm(gradients(bank, kind, p, "image"), 2))
    loose = {"valid": SLACK, "circular": SLACK, "reflect": 9.0}[boundary]
    assert truth <= float(pairing.dual_norm(p)) * SLACK <= loose * SLACK * truth + 1e-6 * float(p.norm())
    assert float(pairing.dual_norm(p)) <= float(traces.dual_norm(p)) * SLACK

    by_response = gradients(bank, kind, u, "responses")
    for whole in (False, True):
        groups = bank.range_shape if not whole else (1, *bank.range_shape[1:])
        if not whole and build is GroupedFilterBank:
            continue  # D is a matrix for each group
        high = torch.rand(1, *groups, generator=rotating_generator, dtype=torch.float64) ** 3
        truth = float(torch.linalg.matrix_norm(by_response * high.sqrt().expand(1, *bank.range_shape).flatten(), 2))
        bound = float(pairing.weighted_norm(u, high))
        assert truth <= bound * SLACK <= SLACK**2 * truth + 1e-6
        assert truth <= float(traces.weighted_norm(u, high)) * SLACK
        bent = high if whole or build is GroupedFilterBank else randn(*high.shape).abs()
        limit = float(torch.minimum(pairing.perturbation_norm(u, bent), traces.perturbation_norm(u, bent)))
        for _ in range(10):
            q = randn(1, *bank.range_shape)
            q = q / (q.square().sum(1, keepdim=True).sqrt() if whole else q.abs()) * bent
            assert float((by_response @ q.flatten()).norm()) <= limit * SLACK


def test_elementwise_bounds_of_members() -> None:
    """Numbers of each response of groups, which elementwise potentials have."""
    bank = GroupedFilterBank(registry.randn(2, 2, 2, 2), (2, 4, 3), over_channels=True)
    (pairing,) = bank.parameter_groups()
    u, high = registry.randn(1, 2, 4, 3, seed=1), registry.rand(1, *bank.range_shape, seed=2)
    by_response = gradients(bank, BANKS["complex groups"], u, "responses")
    truth = float(torch.linalg.matrix_norm(by_response * high.sqrt().flatten(), 2))
    assert truth <= float(pairing.weighted_norm(u, high)) * SLACK <= SLACK**2 * truth
    assert truth <= float(pairing.by_traces().weighted_norm(u, high)) * SLACK
    for row in by_response:
        moved = float((by_response @ (high.flatten() * row.sign())).norm())
        assert moved <= float(pairing.perturbation_norm(u, high)) * SLACK
        assert moved <= float(pairing.by_traces().perturbation_norm(u, high)) * SLACK
