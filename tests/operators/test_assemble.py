"""``assemble`` of a function alone: of tensors, of NumPy arrays; what is not linear is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import registry
import torch

import learnreg as lr
from learnreg.linear.norms import dense_matrix
from learnreg.operators import Blur, assemble, from_callables

SHAPE = (1, 4, 5)


def _pooled(image: Any) -> Any:
    """Of one picture (4, 5)."""
    assert image.ndim == 2
    return image.reshape(2, 2, 5).sum(1)


FUNCTIONS: dict[str, tuple[Callable[[Any], Any], tuple[int, ...], tuple[int, ...]]] = {
    "torch": (lambda x: x.cumsum(-1)[:, 0], SHAPE, (4, 5)),
    "torch, float32 inside": (lambda x: (x.float() * 3).double(), SHAPE, SHAPE),
    "NumPy, batches": (lambda x: np.flip(np.asarray(x), -1), SHAPE, SHAPE),
    "NumPy, one image": (lambda x: np.einsum("chw,hk->ckw", x, np.arange(12.0).reshape(4, 3)), SHAPE, (1, 3, 5)),
    "NumPy, one picture": (_pooled, SHAPE, (1, 2, 5)),
    "NumPy, flat": (lambda x: _pooled(x).ravel(), SHAPE, (10,)),
    "NumPy, shifts every axis": (np.fft.fftshift, (2, 4, 4), (2, 4, 4)),
    "one axis": (lambda x: np.convolve(x, [1.0, 2.0, 3.0], "same"), (7,), (7,)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_matrix_is_that_of_the_function(name: str) -> None:
    function, domain, target = FUNCTIONS[name]
    A = assemble(function, domain, target)
    assert (A.domain_shape, A.range_shape) == (domain, target)
    lr.testing.check_operator(A)
    matrix = dense_matrix(A, domain)
    for k in range(matrix.shape[1]):
        unit = np.zeros(int(np.prod(domain)))
        unit[k] = 1.0
        image = unit.reshape(domain)
        argument = torch.tensor(image)[None] if name.startswith("torch") else image
        if name in ("NumPy, one picture", "NumPy, flat"):
            argument = image[0]
        column = np.asarray(function(argument)).ravel()
        np.testing.assert_allclose(matrix[:, k].numpy(), column, atol=1e-6 if "float32" in name else 1e-12)


def test_skimage_projections_have_their_exact_adjoint() -> None:
    transform = pytest.importorskip("skimage.transform")
    angles = np.linspace(0.0, 180.0, 5, endpoint=False)
    radon = lambda image: transform.radon(image, angles, circle=False)  # noqa: E731
    A = assemble(radon, (1, 6, 6), (1, 9, 5))
    image = registry.rand(1, 1, 6, 6)
    np.testing.assert_allclose(A(image)[0, 0].numpy(), radon(image[0, 0].numpy()), atol=1e-12)
    lr.testing.check_operator(A)
    b = A(image)
    solution = lr.solve(lr.LowerLevelProblem(A, lr.regularizers.TotalVariation().double(), ridge=0.1), b, 1e-5)
    assert solution.certified


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x + 1, r"not linear.*forward\(0\) is not 0"),
        (abs, "not linear"),
        (lambda x: x.clip(0, 1), "not linear"),
        (lambda x: x / (1e-9 + abs(x).max()), "not linear|mixes the first axis"),
        (lambda x: x[..., :-1], r"expected results of range_shape \(1, 4, 5\).*it made"),
        (lambda x: 1j * np.asarray(x), "complex"),
        (lambda x: 1 / 0, "it raised ZeroDivisionError"),
    ],
)
def test_what_is_refused(function: Any, words: str) -> None:
    with pytest.raises(lr.OperatorError, match=words):
        assemble(function, SHAPE, SHAPE)


def test_calls_that_do_not_fit_are_said() -> None:
    A = Blur(registry.rand(3, 3), SHAPE)
    assert torch.equal(dense_matrix(assemble(A, threshold=0.0), SHAPE), dense_matrix(A, SHAPE))
    with pytest.raises(lr.ConfigError, match=r"write threshold="):
        assemble(A, 1e-3)  # type: ignore[arg-type]
    with pytest.raises(lr.ConfigError, match=r"assemble\(forward, domain_shape, range_shape\)"):
        assemble(np.cumsum)
    outside = lambda x: torch.from_numpy(np.cumsum(x.detach().numpy(), -1))  # noqa: E731
    with pytest.raises(lr.OperatorError, match=r"assemble\(forward, domain_shape, range_shape\)"):
        from_callables(outside, None, SHAPE, SHAPE)
