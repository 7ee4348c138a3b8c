"""Magnetic resonance imaging against NumPy's transform and SigPy, its bounds, and complex numbers as two channels."""

from __future__ import annotations

import numpy as np
import pytest
import registry
import torch
from support.adapted_operators import mrinufft_operator, sigpy_sense
from torch import Tensor, nn

import learnreg as lr
from learnreg.linear.norms import dense_matrix
from learnreg.operators import (
    CartesianMRI,
    FourierSampling,
    Identity,
    as_channels,
    as_complex,
    from_mrinufft,
    from_mrpro,
    from_sigpy,
)
from learnreg.operators.mri import from_kspace, to_kspace
from learnreg.regularizers import AnalysisOperator

SIDES = [(6, 4), (5, 7), (1, 8)]


def coils(count: int, *sides: int) -> Tensor:
    return as_complex(registry.randn(count, 2, *sides, seed=6))


@pytest.mark.parametrize("sides", SIDES)
def test_equals_numpys_centred_transform(sides: tuple[int, int]) -> None:
    mask, s = registry.randn(*sides, seed=3), coils(3, *sides)
    x = registry.randn(2, 2, *sides, seed=4)
    seen = s.numpy() * as_complex(x).numpy()[:, None]
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(seen, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    A = CartesianMRI(mask, s)
    assert (A.domain_shape, A.range_shape) == ((2, *sides), (2, 3, *sides))
    np.testing.assert_allclose(as_complex(A(x)).numpy(), mask.numpy() * spectrum, atol=1e-14)
    single = CartesianMRI(mask)
    np.testing.assert_allclose(single(x), CartesianMRI(mask, torch.ones_like(s[:1]))(x)[:, :, 0], atol=1e-14)
    torch.testing.assert_close(from_kspace(to_kspace(as_complex(x))), as_complex(x), rtol=0, atol=1e-14)


def test_equals_sigpys_operator_of_coils() -> None:
    pytest.importorskip("sigpy")
    foreign = from_sigpy(sigpy_sense())
    random = np.random.default_rng(3).standard_normal((2, 2, 5, 6))
    mask = torch.from_numpy(np.random.default_rng(4).random((5, 6)) > 0.4)
    A = CartesianMRI(mask, torch.from_numpy(random[0] + 1j * random[1]))
    x, y = registry.randn(2, *A.domain_shape, seed=1), registry.randn(2, *A.range_shape, seed=2)
    torch.testing.assert_close(A(x), foreign(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(A.adjoint(y), foreign.adjoint(y), rtol=0, atol=1e-14)


def test_one_coil_is_fourier_sampling_without_the_centring() -> None:
    mask, x = registry.randn(5, 6, seed=3), registry.randn(2, 2, 5, 6, seed=4)
    shifted = torch.fft.ifftshift(x, dim=(-2, -1))
    expected = FourierSampling(torch.fft.ifftshift(mask), (2, 5, 6))(shifted)
    torch.testing.assert_close(torch.fft.ifftshift(CartesianMRI(mask)(x), dim=(-2, -1)), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("kind", ["lines", "points", "one", "weights"])
def test_bounds_hold_and_are_exact_where_said(kind: str, sides: tuple[int, int], count: int) -> None:
    height, width = sides
    mask = {
        "lines": (torch.arange(width) % 2).double(),
        "points": (registry.rand(height, width, seed=1) > 0.5).double(),
        "one": (torch.arange(height * width) == 2).double().reshape(height, width),
        "weights": registry.randn(height, width, seed=2),
    }[kind]
    A = CartesianMRI(mask, coils(count, *sides) if count else None, (2, *sides))
    M = dense_matrix(A, A.domain_shape)
    values = torch.linalg.eigvalsh(M.T @ M)
    norm, lowest = float(values[-1]) ** 0.5, max(0.0, float(values[0]))
    assert norm * (1 - 1e-12) <= A.norm_bound() <= 1.5 * norm
    assert A.norm_bound_kind == "rigorous"
    assert A.gram_lower_bound() <= lowest + 1e-13
    if not count:
        assert A.norm_bound() <= norm * (1 + 1e-12)
        assert A.gram_lower_bound() >= lowest - 1e-13
    rows = M.norm(dim=1).reshape(A.range_shape)
    torch.testing.assert_close(torch.as_tensor(A.row_norms(False)), rows, rtol=1e-12, atol=1e-15)
    pairs = torch.linalg.matrix_norm(M.reshape(2, -1, M.shape[1]).transpose(0, 1), 2)
    grouped = torch.as_tensor(A.row_norms(True)).expand(A.range_shape)[0].flatten()
    torch.testing.assert_close(grouped, pairs, rtol=1e-12, atol=1e-15)


def test_uneven_coils_with_few_lines_have_a_tight_norm_beyond_dense_sizes() -> None:
    spot = torch.zeros(2, 40, 40, dtype=torch.complex128)
    spot[:, 20, 20] = 1.0
    mask = torch.zeros(40, dtype=torch.float64)
    mask[20] = 1.0
    A = CartesianMRI(mask, spot)
    norm = float((2.0 / 40) ** 0.5)  # a point seen by two coils, on one of forty lines
    assert norm <= A.norm_bound() <= 1.5 * norm
    assert A.norm_bound_kind == "probabilistic"
    smooth = CartesianMRI(mask, torch.ones(2, 40, 40, dtype=torch.complex128))
    assert smooth.norm_bound_kind == "rigorous"
    assert smooth.norm_bound() == pytest.approx(2.0**0.5, rel=1e-12)


@pytest.mark.parametrize("lines", [True, False])
def test_masks_are_learned(lines: bool) -> None:
    mask = nn.Parameter(0.5 + registry.rand(5) if lines else 0.5 + registry.rand(4, 5))
    A = CartesianMRI(mask, coils(2, 4, 5))
    regularizer = AnalysisOperator(Identity(A.domain_shape), lr.PseudoHuber(0.1, 0.1)).double()
    problem = lr.LowerLevelProblem(A, regularizer, ridge=0.1)
    x_true, b = registry.measure(problem)
    hg = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-4)
    assert hg.certified
    place = (1,) if lines else (1, 2)

    def loss(delta: float) -> float:
        with torch.no_grad():
            mask[place] += delta
            value = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-6).loss
            mask[place] -= delta
        return value

    difference = (loss(1e-4) - loss(-1e-4)) / 2e-4
    assert float(hg.gradient["operator.mask"][place]) == pytest.approx(difference, rel=1e-4)


def test_dtypes_empty_batches_and_the_zero_filled_start() -> None:
    s = coils(3, 6, 4)
    A = CartesianMRI(torch.ones(6, 4, dtype=torch.bool), s)
    x = registry.randn(2, 2, 6, 4)
    assert A(x.float()).dtype == torch.float32
    torch.testing.assert_close(A(x.float()), A(x).float(), rtol=1e-5, atol=1e-5)
    assert A.adjoint(A(x[:0])).shape == (0, 2, 6, 4)
    torch.testing.assert_close(A.approximate_inverse(A(x)), x, rtol=1e-12, atol=1e-12)
    assert torch.equal(A.double().float().coil_sensitivities, torch.view_as_real(s).float())  # type: ignore[arg-type]


def test_complex_numbers_go_there_and_back() -> None:
    z = as_complex(registry.randn(2, 2, 3, 4))
    assert torch.equal(as_complex(as_channels(z)), z)
    assert as_channels(z).shape == (2, 2, 3, 4)
    with pytest.raises(lr.ShapeError, match=r"as_channels\(z\): .*expected complex numbers \(batch, ...\)"):
        as_channels(torch.zeros(2, 3))
    with pytest.raises(lr.ShapeError, match=r"as_complex\(x\): .*expected real numbers \(batch, 2, ...\)"):
        as_complex(torch.zeros(2, 3, 4))
    A = CartesianMRI(torch.ones(3, 4))
    with pytest.raises(lr.ShapeError, match="as_channels"):
        A(as_complex(torch.zeros(2, 2, 2, 3, 4)))


def test_bad_input() -> None:
    s = coils(2, 4, 5)
    cases = [
        (lambda: CartesianMRI(torch.ones(1, 4, 4)), lr.ShapeError, r"got \(1, 4, 4\), expected a tensor \(H, W\)"),
        (lambda: CartesianMRI(torch.ones(4)), lr.ShapeError, r"4 lines do not tell.*domain_shape=\(2, H, W\)"),
        (lambda: CartesianMRI(torch.ones(4), s), lr.ShapeError, r"are not of one image"),
        (lambda: CartesianMRI(torch.ones(4, 4), s), lr.ShapeError, r"are not of one image"),
        (lambda: CartesianMRI(torch.ones(4, 5), s, (2, 5, 4)), lr.ShapeError, r"are not of one image"),
        (lambda: CartesianMRI(torch.ones(4, 5), domain_shape=(1, 4, 5)), lr.ShapeError, r"expected \(2, H, W\)"),
        (lambda: CartesianMRI(torch.full((2, 2), float("nan"))), lr.OperatorError, "NaN or infinite"),
        (lambda: CartesianMRI(torch.ones(2, 2, dtype=torch.complex64)), lr.OperatorError, "complex weights"),
        (lambda: CartesianMRI(torch.ones(4, 5), s.real), lr.OperatorError, "expected complex numbers"),
        (lambda: CartesianMRI(torch.ones(4, 5), s[0]), lr.ShapeError, r"expected complex numbers \(coils, H, W\)"),
        (lambda: CartesianMRI(torch.ones(4, 5), s * float("inf")), lr.OperatorError, "NaN or infinite"),
        (lambda: CartesianMRI(torch.ones(4, 5), s.clone().requires_grad_()), lr.OperatorError, "detach"),
        (lambda: from_sigpy(torch.ones(2)), lr.OperatorError, r"expected a sigpy.linop.Linop, this has no ishape"),
        (lambda: from_mrinufft(torch.ones(2)), lr.OperatorError, r"mrinufft.get_operator, this has no op and"),
        (lambda: from_mrpro(nn.Identity(), (2, 3, 3)), lr.OperatorError, r"mrpro, this has no adjoint"),
    ]
    for build, error, message in cases:
        with pytest.raises(error, match=message):
            build()


def test_what_is_no_pair_of_adjoints_is_refused() -> None:
    pytest.importorskip("mrinufft")
    pytest.importorskip("finufft")
    for options, message in (
        ({"density": np.linspace(1.0, 2.0, 40, dtype=np.float32)}, "compensates for the density"),
        ({"n_batchs": 2}, "n_batchs=1"),
    ):
        with pytest.raises(lr.OperatorError, match=message):
            from_mrinufft(mrinufft_operator(**options))
    A = from_mrinufft(mrinufft_operator(n_coils=2))
    assert (A.domain_shape, A.range_shape) == ((2, 2, 5, 6), (2, 2, 40))
    smaps = coils(2, 5, 6).to(torch.complex64).numpy()
    assert from_mrinufft(mrinufft_operator(n_coils=2, smaps=smaps)).domain_shape == (2, 5, 6)


def test_mrpro_shapes() -> None:
    class Wrong:
        def __call__(self, x: Tensor) -> tuple[Tensor]:
            return (2.0 * x,)

        def adjoint(self, y: Tensor) -> tuple[Tensor]:
            return (3.0 * y,)

    with pytest.raises(lr.OperatorError, match="adjoint is not the transpose"):
        from_mrpro(Wrong(), (2, 3, 4))
    with pytest.raises(lr.OperatorError, match=r"expected \(2, y, x\)"):
        from_mrpro(Wrong(), (1, 3, 4))
