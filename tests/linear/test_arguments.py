"""Whatever is passed to the public API, it works or is refused with a sentence: no raw error of torch or Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.odd_arguments import ODD_NUMBERS, SHAPE, B, X, ends_well, odd_tensors
from torch import Tensor, nn

import learnreg as lr
from learnreg.linear.arguments import given_tensor, real_number
from learnreg.operators import Blur, FourierSampling, Identity, Inpainting, from_callables, from_scipy
from learnreg.regularizers import AnalysisOperator, FieldsOfExperts, TotalVariation

A, R = Identity(SHAPE), TotalVariation(0.1, 1e-2).double()
LOSS = lr.SquaredError(X)


def problem(**options: Any) -> lr.LowerLevelProblem:
    return lr.LowerLevelProblem(A, R, **options)


TAKES_TENSORS: dict[str, Callable[[Any], object]] = {
    "solve": lambda v: lr.solve(problem(), v, 1e2, max_steps=9),
    "solve(start=)": lambda v: lr.solve(problem(), B, 1e2, start=v),
    "solve(problem)": lambda v: lr.solve(v, B),
    "solve(solver=)": lambda v: lr.solve(problem(), B, 1e2, solver=v),
    "hypergradient": lambda v: lr.hypergradient(problem(), v, LOSS, tolerance=1e3),
    "hypergradient(loss)": lambda v: lr.hypergradient(problem(), B, v, tolerance=1e3),
    "hypergradient(start=)": lambda v: lr.hypergradient(problem(), B, LOSS, start=v, tolerance=1e3),
    "hypergradient(start=Start)": lambda v: lr.hypergradient(problem(), B, LOSS, start=lr.Start(v, X), tolerance=1e3),
    "hypergradient(problem)": lambda v: lr.hypergradient(v, B, LOSS),
    "hypergradient(method=)": lambda v: lr.hypergradient(problem(), B, LOSS, v, tolerance=1e3),
    "SquaredError": lambda v: lr.hypergradient(problem(), B, lr.SquaredError(v), tolerance=1e3),
    "UpperLoss": lambda v: lr.UpperLoss(v) if not callable(v) else None,
    "what a loss returns": lambda v: lr.hypergradient(problem(), B, lr.UpperLoss(lambda x: v), tolerance=1e3),
    "certify(b)": lambda v: lr.certify(problem(), v, LOSS, X, certificate="published"),
    "certify(x)": lambda v: lr.certify(problem(), B, LOSS, v, certificate="published"),
    "certify(X)": lambda v: lr.certify(problem(), B, LOSS, X, v, certificate="published"),
    "layer": lambda v: lr.solution_layer(problem())(v),
    "layer(method)": lambda v: lr.solution_layer(problem(), v),
    "energy(x)": lambda v: problem().energy(v, B),
    "energy(b)": lambda v: problem().energy(B, v),
    "value": lambda v: R.value(v),
    "objective": lambda v: lr.BatchObjective(problem(), v, LOSS).value(1e3),
    "objective(loss)": lambda v: lr.BatchObjective(problem(), B, v),
    "operator": lambda v: A(v),
    "adjoint": lambda v: A.adjoint(v),
    "Fourier": lambda v: FourierSampling(torch.ones(4, 4))(v),
    "operator @": lambda v: A @ v,
    "operator +": lambda v: A + v,
    "vstack": lambda v: lr.vstack(v),
    "mask": lambda v: Inpainting(v),
    "kernel": lambda v: Blur(v, SHAPE),
    "Fourier mask": lambda v: FourierSampling(v),
    "weights": lambda v: problem(data_term=lr.WeightedLeastSquares(v)),
    "lower": lambda v: problem(constraint=lr.Box(v, 2.0)),
    "upper": lambda v: problem(constraint=lr.Box(-1.0, v)),
    "problem(operator)": lambda v: lr.LowerLevelProblem(v, R),
    "problem(regularizer)": lambda v: lr.LowerLevelProblem(A, v),
    "problem(data_term=)": lambda v: problem(data_term=v),
    "problem(constraint=)": lambda v: problem(constraint=v),
    "from_scipy": lambda v: from_scipy(v, SHAPE, SHAPE) if v is not torch.Tensor else None,
    "analysis(operator)": lambda v: AnalysisOperator(v, lr.Huber(0.1)),
    "analysis(potential)": lambda v: AnalysisOperator(A, v),
    "from_arrays(filters)": lambda v: FieldsOfExperts.from_arrays(v, [1.0], [1.0]),
    "from_arrays(weights)": lambda v: FieldsOfExperts.from_arrays(torch.ones(2, 3, 3), v, [1.0, 1.0]),
    "train(problem)": lambda v: lr.train(v, [(B[0], X[0])]),
    "train(method=)": lambda v: lr.train(problem(), [], method=v),
}

TAKES_NUMBERS: dict[str, Callable[[Any], object]] = {
    "solve(tolerance)": lambda v: lr.solve(problem(), B, v, max_steps=2),
    "hypergradient(tolerance)": lambda v: lr.hypergradient(problem(), B, LOSS, tolerance=v, max_steps=2),
    "absolute_tolerance": lambda v: lr.hypergradient(
        problem(), B, LOSS, absolute_tolerance=v, tolerance=1e3, max_steps=9
    ),
    "max_steps": lambda v: lr.solve(problem(), B, 1e2, max_steps=v),
    "certify(max_steps)": lambda v: lr.certify(problem(), B, LOSS, X, certificate="published", max_steps=v),
    "certificate": lambda v: lr.hypergradient(problem(), B, LOSS, certificate=v),
    "on_failure": lambda v: lr.solve(problem(), B, on_failure=v),
    "layer(tolerance)": lambda v: lr.solution_layer(problem(), tolerance=v),
    "ridge": lambda v: problem(ridge=v),
    "smoothing": lambda v: lr.PseudoHuber(v),
    "weight": lambda v: lr.LogCosh(0.1, v) if not isinstance(v, Tensor) else None,
    "TotalVariation": lambda v: TotalVariation(v),
    "TotalVariation(smoothing)": lambda v: TotalVariation(0.1, v),
    "FieldsOfExperts": lambda v: None if isinstance(v, int) and v not in (0, 2) else FieldsOfExperts(v, 3),
    "FieldsOfExperts(potential)": lambda v: FieldsOfExperts(4, 3, potential=v),
    "gradient_lipschitz": lambda v: lr.UpperLoss(lambda x: x.sum(), v),
    "loss dtype": lambda v: lr.UpperLoss(lambda x: x.sum(), dtype=v),
    "domain_shape": lambda v: Identity(v),
    "Blur(domain_shape)": lambda v: Blur(torch.ones(3, 3), v),
    "factor": lambda v: v * A if not isinstance(v, (Tensor, np.generic)) else A * v,
    "photons": lambda v: lr.TransmissionLeastSquares(v),
    "attenuation": lambda v: lr.TransmissionLeastSquares(1e4, v),
    "width": lambda v: lr.BatchObjective(problem(), B, LOSS).value(v) if not isinstance(v, Tensor) else None,
    "Implicit": lambda v: lr.hypergradient(problem(), B, LOSS, lr.Implicit(state_solver=v), tolerance=1e3),
    "first_step": lambda v: lr.AdaptiveDescent(first_step=v),
    "load": lambda v: lr.load(v),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TAKES_TENSORS)
def test_odd_tensors(name: str) -> None:
    for kind, value in odd_tensors():
        if kind == "meta" and name in (
            "SquaredError",
            "energy(x)",
            "energy(b)",
            "value",
            "operator",
            "adjoint",
            "Fourier",
        ):
            continue  # shapes are computed there
        ends_well(TAKES_TENSORS[name], value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TAKES_NUMBERS)
def test_odd_numbers(name: str) -> None:
    for value in ODD_NUMBERS.values():
        ends_well(TAKES_NUMBERS[name], value)


def outside(x: Tensor) -> Tensor:
    return torch.tensor(float(x.detach().square().sum()))


def made_in_inference_mode() -> FieldsOfExperts:
    with torch.inference_mode():
        return FieldsOfExperts(4, 3).double()


def flat_problem() -> lr.LowerLevelProblem:
    return lr.LowerLevelProblem(Inpainting(torch.ones(4, 4)), FieldsOfExperts(4, 3), ridge=0.1)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "array for images": (lambda: A(B.numpy()), r"got ndarray, expected a tensor .* torch\.from_numpy"),
    "array for a loss": (lambda: lr.SquaredError(B.numpy()), r"SquaredError\(x_true\): got ndarray"),
    "no batch axis": (lambda: A(B[0]), "Add a batch axis"),
    "no channel axis": (lambda: A(B[:, 0]), "Add a channel axis"),
    "mask without a channel": (lambda: Inpainting(torch.ones(4, 4))(B), r"make it for \(1, 4, 4\)"),
    "masked array": (lambda: Inpainting(np.ma.array(np.ones(SHAPE), mask=np.eye(4)[None])), "masked entries"),
    "NaN kernel": (lambda: Blur(torch.full((3, 3), math.nan), SHAPE), "NaN or infinite"),
    "tensor for from_scipy": (lambda: from_scipy(torch.eye(16), SHAPE, SHAPE), r"tensor\.numpy\(\)"),
    "an image behind @": (lambda: A @ B, r"write A\(x\)"),
    "vector ridge": (lambda: problem(ridge=nn.Parameter(torch.ones(2))), "tensor of shape"),
    "other start": (lambda: lr.solve(problem(), B, start=X[:1]), "got 1 samples for a batch b of 2"),
    "a class of losses": (lambda: lr.hypergradient(problem(), B, lr.SquaredError), r"lr\.SquaredError\(x_true\)"),
    "a tensor as loss": (lambda: lr.hypergradient(problem(), B, X), r"lr\.SquaredError\(x_true\)"),
    "a function as loss": (lambda: lr.BatchObjective(problem(), B, torch.sin), r"lr\.UpperLoss\(function"),
    "loss outside of torch": (lambda: lr.hypergradient(problem(), B, lr.UpperLoss(outside, 1.0)), "knows of"),
    "complex loss": (lambda: lr.hypergradient(problem(), B, lr.UpperLoss(lambda x: 1j * x.sum())), "complex128"),
    "counting loss": (lambda: lr.hypergradient(problem(), B, lr.UpperLoss(lambda x: (x > 0).sum())), "int64"),
    "made in inference mode": (lambda: made_in_inference_mode().value(B), "make it outside"),
    "image without a channel": (lambda: lr.solve(flat_problem(), B[:, 0]), r"Inpainting\(mask\[None\]\)"),
    "loss of two images": (lambda: lr.train(problem(), [(B[0], X[0])], nn.functional.l1_loss), "lambda x_true"),
    "loss that is no loss": (lambda: lr.train(problem(), [(B[0], X[0])], lambda x: x.sum()), "it returned Tensor"),
    "a loss for training": (lambda: lr.train(problem(), [(B[0], X[0])], LOSS), "makes an UpperLoss"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_the_sentence_says_what_to_pass(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(lr.LearnregError, match=message):
        call()


class Physics:
    """As deepinv has them."""

    def A(self, x: Tensor) -> Tensor:
        return x

    A_adjoint = A


RayTransform = type("RayTransform", (), {"__module__": "odl.applications.tomo"})
Restriction = type("Restriction", (), {"__module__": "pylops.basicoperators"})


@pytest.mark.parametrize(
    ("given", "adapter"),
    [
        (RayTransform(), r"got RayTransform, expected a LinearOperator: from_odl\(operator\)"),
        (Restriction(), "from_pylops"),
        (Physics(), "from_deepinv"),
        (torch.eye(3), "from_scipy"),
        (np.eye(3), "from_scipy"),
        (torch.sin, "from_callables"),
        (nn.Conv2d(1, 1, 3), "from_callables"),
        (Identity, r"Identity\(\.\.\.\), an object"),
    ],
)
def test_problems_name_the_adapter(given: object, adapter: str) -> None:
    with pytest.raises(lr.ConfigError, match=adapter):
        lr.LowerLevelProblem(given, R)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ">f8", "int16", "uint64", "bool"])
def test_arrays_of_any_kind_become_tensors_of_their_own(dtype: str) -> None:
    values = np.arange(16).reshape(4, 4) % 2
    array = values.astype(dtype)[::-1, ::-1]
    array.flags.writeable = False
    makers = (lambda a: Inpainting(a[None]), lambda a: Blur(a[:3, :3], SHAPE), FourierSampling)
    for make in makers:
        torch.testing.assert_close(make(array)(B), make(torch.from_numpy(array.astype("float64")))(B))
    weights = lr.WeightedLeastSquares(array[None])
    assert weights.weights.is_floating_point()
    assert lr.solve(problem(data_term=weights, ridge=0.1), B).certified
    found = given_tensor(array, "x")
    assert np.array_equal(found.numpy(), array.astype(found.numpy().dtype))


def test_numbers() -> None:
    assert real_number(np.float32(0.5), "x", above=0.0) == 0.5
    for bad in (0, -1.0, math.nan, math.inf, "1", None, 1j):
        with pytest.raises(lr.ConfigError, match=r"x=.*: expected a positive finite number"):
            real_number(bad, "x", above=0.0)
    with pytest.raises(lr.ConfigError, match="expected a finite number >= 0"):
        real_number(-1e-9, "x", least=0.0)
    assert real_number(math.inf, "x", above=0.0, finite=False) == math.inf
    with pytest.raises(lr.ConfigError, match="x=nan: expected a positive number"):
        real_number(math.nan, "x", above=0.0, finite=False)
    assert from_callables(lambda x: x, None, SHAPE, SHAPE).domain_shape == SHAPE
