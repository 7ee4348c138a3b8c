"""Every mode of torch gives the same numbers: autocast, lazily negated views; half precision is refused everywhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.linear.grad_mode import usable
from learnreg.operators import Blur, Identity
from learnreg.regularizers import FieldsOfExperts

SHAPE = registry.SHAPE
HALF = (torch.float16, torch.bfloat16)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("name", registry.OPERATORS)
def test_operators_under_autocast(name: str) -> None:
    A = registry.OPERATORS[name]()
    x, y = (registry.rand(2, *shape).float() for shape in (A.domain_shape, A.range_shape))
    point = x.clone().requires_grad_()
    plain = (A(x), A.adjoint(y), torch.autograd.grad((A(point) * y).sum(), point)[0])
    with autocast():
        found = (A(x), A.adjoint(y), torch.autograd.grad((A(point) * y).sum(), point)[0])
        made_half = A(x.bfloat16())
    for a, b in zip(plain, found, strict=True):
        assert torch.equal(a, b)
    assert made_half.dtype == torch.float32
    assert torch.equal(made_half, A(x.bfloat16().float()))


@pytest.mark.parametrize("name", registry.regularizers())
def test_regularizers_under_autocast(name: str) -> None:
    R, x = registry.REGULARIZERS[name](), registry.rand(2, *SHAPE).float()
    with autocast():
        found = R.value(x)
    assert torch.equal(found, R.value(x))


def test_entry_points_under_autocast() -> None:
    problem = registry.build("learned-weights", "FieldsOfExperts")
    x_true, b = (t.float() for t in registry.measure(problem))
    problem.float()
    loss = lr.SquaredError(x_true)
    layer = lr.solution_layer(problem)

    def everything() -> list[Tensor]:
        solution, cert = lr.solve(problem, b), lr.certify(problem, b, loss, x_true)
        hg = lr.hypergradient(problem, b, loss)
        point = b.clone().requires_grad_()
        (slope,) = torch.autograd.grad(layer(point).square().sum(), point)
        return [
            solution.x, solution.error_bound, *hg.gradient.values(), torch.tensor(hg.error_bound), cert.error_bound,
            slope, problem.energy(x_true, b), lr.BatchObjective(problem, b, loss).gradient(0.1).x,
        ]  # fmt: skip

    plain = everything()
    with autocast():
        found = everything()
        from_half = layer(b.bfloat16())
    for a, c in zip(plain, found, strict=True):
        assert torch.equal(a, c)
    assert torch.equal(from_half, layer(b.bfloat16().float()))


FOE, B = FieldsOfExperts(3, 3), registry.rand(2, *SHAPE, seed=7).float()
IMAGES: dict[str, Callable[[Tensor], object]] = {
    "solve": lambda x: lr.solve(problem(), x),
    "start": lambda x: lr.solve(problem(), B, start=x),
    "hypergradient": lambda x: lr.hypergradient(problem(), x, lr.SquaredError(B)),
    "hypergradient start": lambda x: lr.hypergradient(problem(), B, lr.SquaredError(B), start=lr.Start(x, x)),
    "SquaredError": lambda x: lr.SquaredError(x),
    "certify b": lambda x: lr.certify(problem(), x, lr.SquaredError(B), B),
    "certify x": lambda x: lr.certify(problem(), B, lr.SquaredError(B), x),
    "certify X": lambda x: lr.certify(problem(), B, lr.SquaredError(B), B, x),
    "layer": lambda x: lr.solution_layer(problem())(x),
    "energy": lambda x: problem().energy(x, B),
    "energy b": lambda x: problem().energy(B, x),
    "objective": lambda x: lr.BatchObjective(problem(), x, lr.SquaredError(x if x.numel() == 0 else B)).gradient(0.1),
    "regularizer": lambda x: FOE.value(x),
    "train": lambda x: lr.train(problem(), [(x[0], x[0])], updates=1),
    **{f"{n} forward": lambda x, n=n: registry.OPERATORS[n]()(x) for n in ("Identity", "Inpainting", "Blur-zero")},
    "Blur adjoint": lambda x: Blur(torch.ones(3, 3), SHAPE).adjoint(x),
    "lr.load": lambda x: model().reconstruct(x),
}


def model() -> lr.Model:
    return lr.Model(
        FOE, {"operator": {"name": "identity", "config": {}}, "ridge": 0.0, "constraint": None, "noise_level": None}
    )


def problem() -> lr.LowerLevelProblem:
    return lr.LowerLevelProblem(Identity(SHAPE), FOE)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("dtype", [*HALF, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_every_entry_point_takes_float32_and_float64_alone(name: str, dtype: torch.dtype) -> None:
    if dtype == torch.float8_e4m3fn and name == "train":
        pytest.skip("torch cannot stack them")
    with pytest.raises(lr.LearnregError, match="expected float32 or float64"):
        IMAGES[name](registry.rand(2, *SHAPE).float().to(dtype))


@pytest.mark.parametrize("dtype", HALF)
def test_parameters_in_half_precision_are_refused(dtype: torch.dtype) -> None:
    half = lr.LowerLevelProblem(Identity(SHAPE), FieldsOfExperts(3, 3)).to(dtype)
    with pytest.raises(lr.ShapeError, match=r"parameter filters: got dtype .* expected float32 or float64"):
        lr.solve(half, torch.zeros(1, *SHAPE))
    with pytest.raises(lr.ShapeError, match="parameter filters"):
        lr.solution_layer(half)(torch.zeros(1, *SHAPE))


EMPTY: dict[str, Callable[[Tensor], object]] = {k: v for k, v in IMAGES.items() if k in ("solve", "layer", "objective")}
EMPTY |= {
    "hypergradient": lambda x: lr.hypergradient(problem(), x, lr.SquaredError(x)),
    "certify": lambda x: lr.certify(problem(), x, lr.SquaredError(x), x),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_batch_is_nothing_to_solve(name: str) -> None:
    with pytest.raises(lr.DataError, match="an empty batch, nothing to solve"):
        EMPTY[name](torch.zeros(0, *SHAPE))


@pytest.mark.parametrize("name", registry.OPERATORS)
def test_operators_make_empty_batches_of_empty_batches(name: str) -> None:
    A = registry.OPERATORS[name]()
    assert A(torch.zeros(0, *A.domain_shape)).shape == (0, *A.range_shape)
    assert A.adjoint(torch.zeros(0, *A.range_shape)).shape == (0, *A.domain_shape)


def test_views_that_are_negated_later() -> None:
    b = registry.rand(2, *SHAPE)
    negated = torch._neg_view(-b)
    assert negated.is_neg()
    assert torch.equal(lr.solve(problem(), negated).x, lr.solve(problem(), b).x)
    assert torch.equal(lr.solution_layer(problem())(negated), lr.solution_layer(problem())(b))
    assert not usable(negated).is_neg()
    with pytest.raises(lr.ShapeError, match="'meta', which has no data"):
        lr.solve(problem(), b.to("meta"))
