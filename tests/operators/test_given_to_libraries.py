"""Operators and regularizers of this package as those of PyLops and DeepInverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.operators import Blur, Inpainting, to_deepinv, to_pylops
from learnreg.regularizers import FieldsOfExperts, TotalVariation


class Mask:
    """What DeepInverse calls a linear physics, of masked pixels."""

    mask = (torch.arange(64).reshape(1, 1, 8, 8) % 3 > 0).double()

    def A(self, x: Tensor) -> Tensor:
        return self.mask * x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.mask * y


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_operator_of_pylops_is_its_dense_matrix(dtype: type, generator: torch.Generator) -> None:
    pylops = pytest.importorskip("pylops")
    kernel = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    A = Blur(kernel, (1, 4, 5))
    adapted = to_pylops(A, dtype)
    dense = torch.stack([A(e.reshape(1, 1, 4, 5)).flatten() for e in torch.eye(20, dtype=torch.float64)], 1).numpy()
    assert isinstance(adapted, pylops.LinearOperator)
    assert (adapted.dims, adapted.dimsd) == ((1, 4, 5), (1, 4, 5))
    x = np.random.default_rng(0).standard_normal((1, 4, 5)).astype(dtype)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    assert np.allclose((adapted @ x).ravel(), dense @ x.ravel(), atol=tolerance)
    assert np.allclose((adapted.H @ x).ravel(), dense.T @ x.ravel(), atol=tolerance)


def test_a_reconstructor_of_deepinv_minimises_the_energy(generator: torch.Generator) -> None:
    R = FieldsOfExperts(4, 3, generator=generator).double()
    y = Mask().A(torch.rand(2, 1, 8, 8, generator=generator, dtype=torch.float64))
    model = to_deepinv(R, factor=0.5, ridge=0.1, tolerance=1e-6)
    assert isinstance(model, nn.Module)
    x = model(y, Mask())
    assert model.solution.certified
    energy = lr.LowerLevelProblem(Inpainting(Mask.mask[0]), 0.5 * R, ridge=0.1).energy
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy(point, y).sum(), point)
    assert float(slope.abs().max()) < 1e-4


def test_a_prior_of_deepinv_has_value_gradient_and_prox(generator: torch.Generator) -> None:
    R = TotalVariation(0.2, smoothing=0.1).double()
    prior = to_deepinv(R, factor=2.0, tolerance=1e-8)
    x = torch.rand(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    assert torch.allclose(prior.fn(x, 0.1), 2 * R.value(x))
    step = 1e-6 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    change = (prior.fn(x + step) - prior.fn(x - step)).sum() / 2
    assert torch.allclose((prior.grad(x) * step).sum(), change, rtol=1e-5)
    z = prior.prox(x, gamma=0.5)
    assert torch.allclose(z + 0.5 * prior.grad(z), x, atol=1e-6)


@pytest.mark.parametrize("arguments", [{"factor": 0.0}, {"ridge": -1.0}, {"tolerance": 0.0}])
def test_numbers_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(lr.ConfigError, match=next(iter(arguments))):
        to_deepinv(TotalVariation(), **arguments)


def test_other_things_are_refused() -> None:
    with pytest.raises(lr.ConfigError, match="Regularizer"):
        to_deepinv(nn.Identity())
    with pytest.raises(lr.ConfigError, match="physics"):
        to_deepinv(TotalVariation())(torch.zeros(1, 1, 8, 8), 0.1)
