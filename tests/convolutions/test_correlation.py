"""Kernels of filter banks: all against conv2d and conv_transpose2d, in given memory, at any block size."""

from __future__ import annotations

import pytest
import registry
import torch
import torch.nn.functional as F

from learnreg.convolutions import correlation
from learnreg.convolutions.correlation import chosen_kernels, correlate, correlate_adjoint

SHAPES = [(1, 1, 3, 3, 9, 8), (3, 4, 5, 5, 17, 12), (2, 7, 2, 5, 6, 30), (2, 3, 7, 7, 7, 7)]
"""batch, filters, their sides, image sides; the last has one response per filter."""


@pytest.mark.parametrize("block", [1, 300, 2**20], ids=["rows", "few rows", "all"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", list(correlation._FORWARD))
def test_forward_kernels_equal_conv2d(
    name: str, shape: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correlation, "_BLOCK_BYTES", block)
    monkeypatch.setattr(correlation, "_ROW_BYTES", block)
    batch, n, k, l, rows, cols = shape
    x, filters = registry.randn(batch, 1, rows, cols, seed=1), registry.randn(n, k, l, seed=2)
    out = torch.full((batch, n, rows - k + 1, cols - l + 1), torch.nan, dtype=x.dtype)
    correlation._FORWARD[name](x, filters, out)
    torch.testing.assert_close(out, F.conv2d(x, filters[:, None]))
    correlation._FORWARD[name](x.mT.contiguous().mT, filters, out)  # any strides
    torch.testing.assert_close(out, F.conv2d(x, filters[:, None]))


@pytest.mark.parametrize("block", [1, 1000, 2**20], ids=["rows", "few rows", "all"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", list(correlation._ADJOINT))
def test_adjoint_kernels_equal_conv_transpose2d(
    name: str, shape: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correlation, "_TAP_BYTES", block)
    monkeypatch.setattr(correlation, "_ROW_BYTES", block)
    batch, n, k, l, rows, cols = shape
    y, filters = registry.randn(batch, n, rows - k + 1, cols - l + 1, seed=1), registry.randn(n, k, l, seed=2)
    out = torch.full((batch, 1, rows, cols), torch.nan, dtype=y.dtype)
    correlation._ADJOINT[name](y, filters, out)
    torch.testing.assert_close(out, F.conv_transpose2d(y, filters[:, None]))


def test_results_go_where_they_are_asked_to() -> None:
    x, filters = registry.randn(2, 1, 9, 9, seed=1), registry.randn(4, 3, 3, seed=2)
    out = torch.empty(2, 4, 7, 7, dtype=x.dtype)
    assert correlate(x, filters, out) is out
    torch.testing.assert_close(out, F.conv2d(x, filters[:, None]))
    back = torch.empty_like(x)
    assert correlate_adjoint(out, filters, back) is back
    torch.testing.assert_close(back, F.conv_transpose2d(out, filters[:, None]))


def test_the_choice_is_measured_once_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlation, "_choices", {})
    x, filters = registry.randn(1, 1, 9, 9, seed=1).float(), registry.randn(4, 3, 3, seed=2).float()
    correlate(x, filters)
    (first,) = chosen_kernels().values()
    assert first in correlation._FORWARD
    monkeypatch.setattr(correlation, "_fastest", lambda *_: pytest.fail("measured again"))
    correlate(x, filters)


def test_deterministic_mode_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlation, "_choices", {})
    x, filters = registry.randn(1, 1, 9, 9, seed=1), registry.randn(4, 3, 3, seed=2)
    torch.use_deterministic_algorithms(True)
    try:
        y = correlate(x, filters)
        correlate_adjoint(y, filters)
    finally:
        torch.use_deterministic_algorithms(False)
    assert chosen_kernels() == {}


def test_scratch_space_survives_inference_mode() -> None:
    y, filters = registry.randn(1, 4, 7, 7, seed=1), registry.randn(4, 3, 3, seed=2)
    out = torch.empty(1, 1, 9, 9, dtype=y.dtype)
    with torch.inference_mode():
        correlation._taps_product(y, filters, out)
    correlation._taps_product(y, filters, out)
    torch.testing.assert_close(out, F.conv_transpose2d(y, filters[:, None]))
