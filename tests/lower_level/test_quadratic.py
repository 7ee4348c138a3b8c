"""The quadratic part of the energy: both classes against the dense M, and what closed forms promise."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.errors import AssumptionError
from learnreg.lower_level.constraints import Unconstrained
from learnreg.lower_level.quadratic import DiagonalQuadratic, Quadratic, quadratic_of
from learnreg.operators import Blur, Identity, Inpainting

SHAPE, BATCH = registry.SHAPE, 3
ONE = torch.ones((), dtype=torch.float64)
OPERATORS = {
    "identity": lambda: Identity(SHAPE),
    "mask": lambda: Inpainting((registry.rand(*SHAPE) > 0.4).double()),
    "blur": lambda: Blur(registry.rand(3, 3) / 4, SHAPE, "reflect"),
}
WEIGHTS = {
    "none": lambda: ONE,
    "each": lambda: 0.2 + registry.rand(*SHAPE, seed=3),
    "of-samples": lambda: 0.2 + registry.rand(BATCH, *SHAPE, seed=4),
}


def images(seed: int) -> Tensor:
    return registry.randn(BATCH, *SHAPE, seed=seed)


@pytest.fixture(params=[(o, w) for o in OPERATORS for w in WEIGHTS], ids="-".join)
def quadratic(request: pytest.FixtureRequest) -> Quadratic:
    operator, weights = request.param
    return quadratic_of(OPERATORS[operator](), WEIGHTS[weights](), 0.3, images(0))


def dense(quadratic: Quadratic, sample: int) -> Tensor:
    """M of one sample."""
    part, n = quadratic.select(slice(sample, sample + 1)), math.prod(SHAPE)
    units = torch.eye(n, dtype=torch.float64).reshape(n, 1, *SHAPE)
    return torch.stack([part(unit).flatten() for unit in units], 1)


def test_applies_the_operator_weights_and_ridge(quadratic: Quadratic) -> None:
    x, A = images(1), quadratic.forward
    expected = A.adjoint(quadratic.weights * A(x)) + 0.3 * x
    torch.testing.assert_close(quadratic(x), expected)
    assert quadratic.is_diagonal == (A.diagonal() is not None)
    torch.testing.assert_close(quadratic.pull(x), A.adjoint(x))


def test_norm_and_majorant_bound_the_dense_matrix(quadratic: Quadratic) -> None:
    for k in range(BATCH):
        matrix = dense(quadratic, k)
        assert float(torch.linalg.eigvalsh(matrix).max()) <= quadratic.norm() * (1.0 + 1e-12)
        above = quadratic.select(slice(k, k + 1)).majorant()
        above = torch.as_tensor(above, dtype=torch.float64).expand(1, *SHAPE).flatten()
        assert float(torch.linalg.eigvalsh(torch.diag(above) - matrix).min()) >= -1e-12


def test_primal_steps_end_where_the_model_is_least(quadratic: Quadratic) -> None:
    """0 = (x_hat - x)/step + pullback - rhs + the gradient: at x_hat of what is proximal, at x of what is explicit."""
    x, pullback, rhs, step = images(1), images(2), images(3), registry.rand(BATCH, 1, 1, 1, seed=4)
    x_hat = quadratic.primal_step(x, pullback, rhs, step)
    gradient = quadratic(x_hat) if quadratic.is_diagonal else quadratic(x) + 0.3 * (x_hat - x)
    torch.testing.assert_close((x_hat - x) / step + pullback - rhs + gradient, torch.zeros_like(x))
    assert (quadratic.explicit_lipschitz() == 0.0) == quadratic.is_diagonal


def test_minimises_and_measures_in_closed_form_where_it_is_diagonal(quadratic: Quadratic) -> None:
    x, rhs, free = images(1), images(2), Unconstrained()
    if not quadratic.is_diagonal:
        with pytest.raises(AssumptionError, match="closed form"):
            quadratic.minimiser(rhs)
        assert bool(torch.isinf(quadratic.excess(x, rhs, free)).all())
        return
    best = quadratic.minimiser(rhs)
    torch.testing.assert_close(quadratic(best), rhs)
    above = 0.5 * ((x - best) * quadratic(x - best)).flatten(1).sum(1)
    torch.testing.assert_close(quadratic.excess(x, rhs, free), above)
    torch.testing.assert_close(quadratic.excess(best, rhs, lr.Box(-9.0, 9.0)), torch.zeros(BATCH).double())


def test_samples_and_dtypes(quadratic: Quadratic) -> None:
    x, index = images(1), torch.tensor([0, 2])
    torch.testing.assert_close(quadratic.select(index)(x[index]), quadratic(x)[index])
    single = quadratic.to(torch.float32)
    assert single(x.float()).dtype == torch.float32
    torch.testing.assert_close(single(x.float()).double(), quadratic(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operator", ["identity", "mask", "blur"])
def test_a_number_only_for_multiples_of_the_identity(operator: str) -> None:
    found = quadratic_of(OPERATORS[operator](), ONE, 0.3, images(0)).number()
    assert (found is not None) == (operator == "identity")
    assert found is None or float(found) == 1.3


def test_lifting_keeps_diagonals_diagonal() -> None:
    """Beside latent variables of the same modulus, a number stays one; others become images of more channels."""
    joint = Identity((3, *SHAPE[1:]))
    number = quadratic_of(Identity(SHAPE), ONE, 0.3, images(0))
    same, other = (number.lifted(joint, (2, *SHAPE[1:]), own) for own in (1.3, 0.5))
    assert same.number() is not None
    assert isinstance(other, DiagonalQuadratic)
    x = registry.randn(BATCH, 3, *SHAPE[1:], seed=1)
    torch.testing.assert_close(other(x), torch.cat([1.3 * x[:, :1], 0.5 * x[:, 1:]], 1))
