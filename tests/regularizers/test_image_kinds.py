"""Signals, colour and complex images, and volumes: energies written out again, dense hypergradients, invariances, model
files, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import registry
import torch
import torch.nn.functional as F
from truth.dense import distance, norm, truth_of

import learnreg as lr
from learnreg.convolutions.composition import compose, jacobian_bound, normalised
from learnreg.operators import Identity
from learnreg.regularizers import (
    FieldsOfExperts,
    GeneralisedTikhonov,
    InputConvexNetwork,
    LearnedTotalVariation,
    MultivariateExperts,
    Regularizer,
    RidgeRegularizer,
    TotalVariation,
)
from learnreg.regularizers.image_kind import ImageKind

CORRELATIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SIDES = {1: (9,), 2: (5, 4), 3: (3, 4, 3)}
KINDS = [
    (channels, coupling, dimensions)
    for channels, coupling in ((1, "separate"), (3, "separate"), (3, "joint"), (2, "complex"))
    for dimensions in (1, 2, 3)
    if (channels, dimensions) != (1, 2)  # what all other tests are about
]


def ridge(channels: int, **kind: Any) -> Regularizer:
    return RidgeRegularizer((2, 3), 2, 7, weight=0.5, smoothing=0.15, image_channels=channels, **kind)


FAMILIES: dict[str, Callable[..., Regularizer]] = {
    "FieldsOfExperts": lambda **kind: FieldsOfExperts(4, 3, lr.PseudoHuber(0.1, 0.5), **kind),
    "FieldsOfExperts-LogCosh": lambda **kind: FieldsOfExperts(4, 3, lr.LogCosh(0.1, 0.5), **kind),
    "FieldsOfExperts-Square": lambda **kind: FieldsOfExperts(4, 3, lr.Square(0.5), **kind),
    "TotalVariation": lambda **kind: TotalVariation(0.2, 0.05, **kind),
    "MultivariateExperts": lambda **kind: MultivariateExperts(2, 2, 3, 0.5, 0.1, **kind),
    "GeneralisedTikhonov": lambda **kind: GeneralisedTikhonov(3, 2, 0.9, **kind),
    "RidgeRegularizer": ridge,
    "RidgeRegularizer-nonconvex": partial(ridge, convexity="convex-nonconvex"),
    "LearnedTotalVariation": lambda **kind: LearnedTotalVariation(2, 3, 0.3, 0.1, **kind),
    "InputConvexNetwork": lambda **kind: InputConvexNetwork(features=4, size=3, weight=0.4, smoothing=0.15, **kind),
}
CASES = [
    (name, *kind)
    for name in FAMILIES
    for kind in KINDS
    if not (kind[1] == "complex" and name == "InputConvexNetwork")
    and not (kind[2] != 2 and name == "LearnedTotalVariation")
]


def build(name: str, channels: int, coupling: str, dimensions: int) -> Regularizer:
    """Away from its start."""
    torch.manual_seed(3)
    result = FAMILIES[name](channels=channels, coupling=coupling, dimensions=dimensions).double()
    with torch.no_grad():
        for i, p in enumerate(result.parameters()):
            p.add_(0.2 * registry.randn(*p.shape, seed=50 + i))
    return result


@pytest.mark.parametrize(("name", "channels", "coupling", "dimensions"), CASES)
@pytest.mark.sampled(share=0.1, by=("name",))
def test_hypergradients_are_those_of_dense_matrices(name: str, channels: int, coupling: str, dimensions: int) -> None:
    R, shape = build(name, channels, coupling, dimensions), (channels, *SIDES[dimensions])
    b, x_true = registry.rand(2, *shape, seed=1), registry.rand(2, *shape, seed=2)
    problem, loss = lr.LowerLevelProblem(Identity(shape), R), lr.SquaredError(x_true)
    truth = truth_of(problem, b, loss)
    found = lr.hypergradient(problem, b, loss, tolerance=1e-7)
    assert found.certified
    assert distance(found.gradient, truth.gradient) <= min(found.error_bound, 1e-6 * norm(truth.gradient)) + 1e-12


def padded(x: np.ndarray, k: int, dimensions: int) -> np.ndarray:
    widths = [(0, 0), (0, 0), *[((k - 1) // 2, k // 2)] * dimensions]
    return np.pad(x, widths, mode="reflect")


@pytest.mark.parametrize(("channels", "coupling", "dimensions"), KINDS)
def test_energy_of_experts_is_the_formula(channels: int, coupling: str, dimensions: int) -> None:
    R = build("FieldsOfExperts", channels, coupling, dimensions)
    assert isinstance(R, FieldsOfExperts)
    assert R.smoothing is not None
    x = registry.randn(2, channels, *SIDES[dimensions], seed=4)
    image, w, apply = torch.from_numpy(padded(x.numpy(), 3, dimensions)), R.effective_filters, CORRELATIONS[dimensions]
    if coupling == "joint":
        squares = [apply(image, w) ** 2]
    else:
        squares = [apply(image[:, c : c + 1], w[:, None]) ** 2 for c in range(channels)]
    squares = [torch.stack(squares).sum(0)] if coupling == "complex" else squares
    l, v = (n.reshape(-1, *(1,) * dimensions) for n in (R.weights, R.smoothing))
    expected = sum((l * (torch.sqrt(s + v**2) - v)).flatten(1).sum(1) for s in squares)
    torch.testing.assert_close(R.value(x), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("channels", "coupling", "dimensions"), KINDS)
def test_energy_of_total_variation_is_the_formula(channels: int, coupling: str, dimensions: int) -> None:
    x = registry.randn(channels, *SIDES[dimensions], seed=4)
    squares = torch.zeros_like(x)
    for axis in range(1, dimensions + 1):
        squares += torch.from_numpy(np.diff(x, axis=axis, append=x.select(axis, -1).unsqueeze(axis))) ** 2
    squares = squares if coupling == "separate" else squares.sum(0)
    expected = 0.2 * (torch.sqrt(squares + 0.05**2) - 0.05).sum()
    R = TotalVariation(0.2, 0.05, channels=channels, coupling=coupling, dimensions=dimensions).double()  # type: ignore[arg-type]
    torch.testing.assert_close(R.value(x[None])[0], expected, rtol=1e-6, atol=0)


def test_total_variation_against_scikit_image() -> None:
    """Of volumes, one channel after the other: ½‖x - b‖² + w TV(x), by a small smoothing."""
    restoration = pytest.importorskip("skimage.restoration")
    planes, rows, cols = np.mgrid[:3, :5, :4]
    clean = np.stack([(rows > 2) * 1.0, (planes + cols > 3) * 0.7])
    b = clean + 0.1 * registry.randn(*clean.shape, seed=1).numpy()
    denoise = lambda image: restoration.denoise_tv_chambolle(image, 0.2, eps=1e-9, max_num_iter=400)  # noqa: E731
    expected = np.stack([denoise(image) for image in b])
    R = TotalVariation(0.2, 1e-4, channels=2, dimensions=3).double()
    x = lr.solve(lr.LowerLevelProblem(Identity(b.shape), R), torch.from_numpy(b)[None], 1e-4).x[0]
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-2)


@pytest.mark.parametrize(("inputs", "dimensions"), [(3, 2), (1, 1), (2, 3)])
def test_compositions_of_all_kinds(inputs: int, dimensions: int) -> None:
    """One bank for all convolutions, at most of norm one; the bound of its Jacobian holds."""
    kernels = [registry.randn(3, inputs, *(2,) * dimensions), registry.randn(2, 3, *(2,) * dimensions, seed=1)]
    x = registry.randn(1, inputs, *(6,) * dimensions, seed=2)
    apply = CORRELATIONS[dimensions]
    torch.testing.assert_close(apply(x, compose(kernels)), apply(apply(x, kernels[0]), kernels[1]))
    filters = normalised(kernels)
    spectrum = torch.fft.fftn(filters, s=[32] * dimensions, dim=tuple(range(2, 2 + dimensions)))
    assert float(torch.linalg.matrix_norm(spectrum.movedim((0, 1), (-2, -1)), 2).max()) <= 1.0 + 1e-2
    jacobians = torch.autograd.functional.jacobian(lambda *k: normalised(k), tuple(kernels))
    dense = torch.cat([j.flatten(filters.dim()).flatten(0, filters.dim() - 1) for j in jacobians], 1)
    exact = float(torch.linalg.matrix_norm(dense, 2))
    assert exact <= jacobian_bound(kernels) <= 6.0 * exact


@pytest.mark.parametrize(("name", "dimensions"), [(name, d) for name, _, kind, d in CASES if kind == "complex"])
@pytest.mark.sampled(share=0.25, by=("dimensions",))
def test_complex_images_have_no_preferred_phase(name: str, dimensions: int) -> None:
    R, shape = build(name, 2, "complex", dimensions), (2, *SIDES[dimensions])
    x, angle = registry.randn(1, *shape, seed=4), 0.7
    turn = lambda u: torch.stack(  # noqa: E731
        [math.cos(angle) * u[:, 0] - math.sin(angle) * u[:, 1], math.sin(angle) * u[:, 0] + math.cos(angle) * u[:, 1]],
        1,
    )
    torch.testing.assert_close(R.value(turn(x)), R.value(x), rtol=1e-12, atol=0)
    problem = lr.LowerLevelProblem(Identity(shape), R)
    first, second = (lr.solve(problem, b, 1e-8).x for b in (x, turn(x)))
    torch.testing.assert_close(turn(first), second, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "InputConvexNetwork"])
def test_separate_channels_are_images_of_their_own(name: str) -> None:
    one, three = build(name, 1, "separate", 2), build(name, 3, "separate", 2)
    x = registry.randn(2, 3, 6, 5, seed=4)
    torch.testing.assert_close(three.value(x), one.value(x.flatten(0, 1)[:, None]).view(2, 3).sum(1))


@pytest.mark.parametrize(("name", "channels", "coupling", "dimensions"), CASES)
@pytest.mark.sampled(share=0.1, by=("name",))
def test_model_files_and_examinations(name: str, channels: int, coupling: str, dimensions: int, tmp_path: Path) -> None:
    R = build(name, channels, coupling, dimensions)
    x = registry.randn(1, channels, *SIDES[dimensions], seed=4)
    lr.save_model(tmp_path / "model.safetensors", R)
    model = lr.load(tmp_path / "model.safetensors")
    assert (model.regularizer.image_channels, model.regularizer.image_dimensions) == (channels, dimensions)
    torch.testing.assert_close(model.regularizer.value(x), R.value(x), rtol=1e-14, atol=0)
    assert model.solve(x, 1e-3).certified
    drawn = R.pictures()
    assert drawn is None or drawn.filters is None or drawn.filters.dim() == 4
    with pytest.raises(lr.ShapeError, match="expected"):
        model.solve(x[:, :1].expand(-1, channels + 1, *x.shape[2:]), 1e-3)


@pytest.mark.parametrize(("name", "coupling"), [("FieldsOfExperts", "joint"), ("TotalVariation", "complex")])
def test_examinations_know_the_kind(name: str, coupling: str) -> None:
    lr.testing.check_regularizer(build(name, 2, coupling, 1))


def test_files_of_grey_images_say_nothing_of_kinds() -> None:
    assert ImageKind().config() == {}
    assert not {"coupling", "dimensions"} & FieldsOfExperts(3, 3).config().keys()


REFUSED = {
    "a coupling": (lambda: FieldsOfExperts(channels=2, coupling="both"), "expected 'separate', 'joint' or 'complex'"),  # type: ignore[arg-type]
    "complex colours": (lambda: TotalVariation(channels=3, coupling="complex"), "expected channels=2"),
    "four dimensions": (lambda: MultivariateExperts(dimensions=4), "dimensions 1 for signals"),
    "no channels": (lambda: GeneralisedTikhonov(channels=0), "channels from 1"),
    "a potential without a modulus": (
        lambda: FieldsOfExperts(potential=lr.AbsoluteValue(), channels=2, coupling="complex"),
        "AbsoluteValue has no form for a modulus",
    ),
    "positions in volumes": (lambda: LearnedTotalVariation(dimensions=3), "dimensions=2"),
    "complex networks": (lambda: InputConvexNetwork(2, coupling="complex"), "see no modulus"),
    "lifted colours": (lambda: InputConvexNetwork(3, form="lifted"), "form='smooth'"),
    "mixing in volumes": (lambda: InputConvexNetwork(dimensions=3, mixing_size=3), "mixing_size=1"),
    "filters of another shape": (
        lambda: FieldsOfExperts.from_arrays(
            torch.zeros(2, 3, 3), torch.ones(2), torch.ones(2), channels=3, coupling="joint"
        ),
        r"expected \(n, 3, k, k\)",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_advice(what: str) -> None:
    make, message = REFUSED[what]
    with pytest.raises((lr.ConfigError, lr.ShapeError), match=message):
        make()


@pytest.mark.parametrize("name", FAMILIES)
def test_other_images_are_refused_with_what_takes_them(name: str) -> None:
    R = build(name, 1, "separate", 2)
    with pytest.raises(
        lr.ShapeError, match=r"got images of shape \(3, 8, 8\), expected \(1, height, width\).*channels=3"
    ):
        R.value(torch.zeros(1, 3, 8, 8).double())
    with pytest.raises(lr.ShapeError, match=r"channels=1, dimensions=3"):
        R.value(torch.zeros(1, 1, 8, 8, 8).double())
