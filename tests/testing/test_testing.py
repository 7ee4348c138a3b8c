"""The acceptance checks: every registered object passes, and each wrong one is blamed for the right property."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from registry import randn
from support import wrong_operators as wrong_operators
from support import wrong_regularizers as wrong_regularizers
from support.wrong_operators import Custom, correlate, correlate_adjoint, dense, matrix, on_images
from torch import Tensor

import learnreg as lr
from learnreg.operators import Blur, Identity, Inpainting
from learnreg.regularizers import FieldsOfExperts
from learnreg.testing import (
    OPERATOR_PROPERTIES,
    REGULARIZER_PROPERTIES,
    OperatorTests,
    RegularizerTests,
    check_operator,
    check_regularizer,
    examine_operator,
)
from learnreg.testing.quick import examine_operator_quickly
from learnreg.testing.regularizers import examine_regularizer_quickly

DTYPES = [torch.float64, torch.float32]


# ----------------------------------------------------------------------------------------------------------- operators


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", registry.OPERATORS)
@pytest.mark.sampled(share=0.5, by=("name", "dtype"))
def test_every_operator_passes(name: str, dtype: torch.dtype) -> None:
    report = check_operator(registry.OPERATORS[name](), dtype)
    assert [found.name for found in report] == list(OPERATOR_PROPERTIES)
    assert all(found.value <= found.threshold for found in report)
    assert examine_operator_quickly(registry.OPERATORS[name](), dtype).ok


@pytest.mark.parametrize("name", wrong_operators.WRONG)
def test_the_property_that_fails_is_named(name: str) -> None:
    case = wrong_operators.WRONG[name]
    with pytest.raises(lr.OperatorError) as caught:
        check_operator(case.operator())
    assert caught.value.failed_property == case.blamed
    assert f"'{case.blamed}'" in str(caught.value)
    assert case.words in str(caught.value)


BEYOND_A_SCREENING = {
    *("nan", "returns-its-cache", "only-the-first-sample", "clamp", "computes-in-float32"),
    *("norm-far-too-large", "gram-bound-too-large", "gram-bound-negative", "row-norms-too-small", "negative"),
    *("detached", "detached-adjoint", "second-derivative-lost", "parameter-lipschitz-too-small"),
}


@pytest.mark.parametrize("name", wrong_operators.WRONG)
def test_what_a_screening_finds_it_names_alike(name: str) -> None:
    case = wrong_operators.WRONG[name]
    report = examine_operator_quickly(case.operator(), torch.float64)
    assert report.ok == (name in BEYOND_A_SCREENING)
    assert report.failed is None or report.failed.name == case.blamed


def test_an_adjoint_that_is_declared_inexact_may_be_trained_with() -> None:
    class Inexact(Custom):
        def adjoint_mismatch(self) -> float:
            return 0.01

    A = Inexact(correlate, lambda y: 1.005 * correlate_adjoint(y))
    assert examine_operator_quickly(A, torch.float32).ok
    with pytest.raises(lr.OperatorError, match=r"1\.005"):
        check_operator(A)
    assert check_operator(A, adjoint_tolerance=0.02)["adjoint"].value > 0.004


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_adjoint_off_by_half_a_percent_is_caught_at_any_size(dtype: torch.dtype, seed: int) -> None:
    for n in (3, 64, 150):
        A = Custom(correlate, lambda y: 1.005 * correlate_adjoint(y), (1, n, n), (1, n, n))
        with pytest.raises(lr.OperatorError, match=r"off by a factor 1\.005") as caught:
            check_operator(A, dtype, seed=seed)
        assert caught.value.failed_property == "adjoint"
        assert examine_operator_quickly(A, dtype, seed).failed is not None


def test_few_wrong_entries_of_a_large_operator_are_caught() -> None:
    def adjoint(y: Tensor) -> Tensor:
        result = correlate_adjoint(y)
        result[..., 17, 5] *= 1.005
        return result

    with pytest.raises(lr.OperatorError) as caught:
        check_operator(on_images(adjoint, 200))
    assert caught.value.failed_property == "adjoint"


@pytest.mark.parametrize("weights", ["rows", "columns"])
def test_weights_of_a_large_operator_are_recognised(weights: str) -> None:
    d = 0.5 + registry.rand(200, 1, seed=5)
    weigh = {
        "rows": lambda y: correlate_adjoint(d.to(y) * y),
        "columns": lambda y: d.T.to(y) * correlate_adjoint(y),
    }[weights]
    words = {"rows": "weights of the measurements", "columns": "weights of the pixels"}[weights]
    with pytest.raises(lr.OperatorError, match=words):
        check_operator(on_images(weigh, 200))


def test_the_radon_transform_of_scikit_image_is_no_exact_pair() -> None:
    transform = pytest.importorskip("skimage.transform")
    n, angles = 16, [0.0, 30.0, 60.0, 90.0, 120.0, 150.0]

    def each(function: object, t: Tensor) -> Tensor:
        return torch.stack([torch.from_numpy(function(image[0].double().numpy()))[None] for image in t]).to(t)  # type: ignore[operator]

    def forward(x: Tensor) -> Tensor:
        return each(lambda image: transform.radon(image, angles, circle=False), x)

    def adjoint(y: Tensor) -> Tensor:
        back = lambda sinogram: transform.iradon(sinogram, angles, n, filter_name=None, circle=False)  # noqa: E731
        return each(back, y) * (2 * len(angles) / math.pi)

    rows = forward(torch.zeros(1, 1, n, n)).shape[2]
    A = Custom(forward, adjoint, (1, n, n), (1, rows, len(angles)))
    for dtype in DTYPES:
        with pytest.raises(lr.OperatorError) as caught:
            check_operator(A, dtype)
        assert caught.value.failed_property == "adjoint"
        assert examine_operator(A, dtype)["adjoint"].value > 5e-3


def test_single_precision_passes_when_it_is_asked_for() -> None:
    inside = Custom(lambda x: correlate(x.float()).to(x), lambda y: correlate_adjoint(y.float()).to(y))
    always = Custom(lambda x: correlate(x.float()), lambda y: correlate_adjoint(y.float()))
    kernel = wrong_operators.kernel().float()
    refusing = Custom(
        lambda x: torch.nn.functional.conv2d(x, kernel, padding=1),
        lambda y: torch.nn.functional.conv_transpose2d(y, kernel, padding=1),
    )
    for operator, blamed in ((inside, "precision"), (always, "dtype"), (refusing, "dtype")):
        assert check_operator(operator, torch.float32).ok
        with pytest.raises(lr.OperatorError, match=r"dtype=torch\.float32") as caught:
            check_operator(operator)
        assert caught.value.failed_property == blamed


def test_anything_with_the_four_names_is_examined() -> None:
    class Plain:
        domain_shape, range_shape = (1, 3, 3), (1, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * x

        def adjoint(self, y: Tensor) -> Tensor:
            return 2.0 * y

    report = check_operator(Plain())
    assert report["adjoint"].value == 0.0
    assert "no norm_bound" in report["norm_bound"].measures


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (lambda x: x, "no forward, adjoint, domain_shape, range_shape"),
        (torch.nn.Conv2d(1, 1, 3), "no adjoint, domain_shape, range_shape"),
        (Identity, "got a class; pass an instance"),
        (3.0, "float has no forward, adjoint"),
    ],
)
def test_what_is_no_operator_is_refused(thing: object, words: str) -> None:
    with pytest.raises(lr.OperatorError, match=words) as caught:
        check_operator(thing)
    assert caught.value.failed_property == "interface"


def test_shapes_that_are_none_are_refused() -> None:
    A = dense(matrix())
    A.domain_shape = [1, 6.0]  # type: ignore[list-item, assignment]
    with pytest.raises(lr.OperatorError, match="tuple of positive integers"):
        check_operator(A)


def test_a_purity_check_leaves_the_operator_as_it_was() -> None:
    cached = wrong_operators.Caches()
    with pytest.raises(lr.OperatorError):
        check_operator(cached)
    assert all(torch.equal(result, 2.0 * x) for x, result in cached._seen)


def test_examination_changes_neither_parameters_nor_random_numbers() -> None:
    A = Blur(torch.nn.Parameter(registry.rand(3, 3)), (1, 5, 6))
    before, state = A.kernel.detach().clone(), torch.get_rng_state()
    check_operator(A)
    assert torch.equal(A.kernel, before)
    assert A.kernel.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_a_report_tells_all_it_measured() -> None:
    report = check_operator(Inpainting(torch.ones(1, 4, 4)))
    assert report.ok
    assert report.failed is None
    text = str(report)
    assert all(name in text for name in OPERATOR_PROPERTIES)
    with pytest.raises(KeyError):
        report["beauty"]
    failing = examine_operator(wrong_operators.scaled(1.01))
    assert not failing.ok
    assert failing.failed is not None
    assert failing.failed == failing["adjoint"]
    assert "FAIL  adjoint" in str(failing)
    assert list(failing)[-1].name == "adjoint"


# -------------------------------------------------------------------------------------------------------- regularizers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", registry.regularizers())
@pytest.mark.sampled(share=0.5, by=("dtype", "name"))
def test_every_regularizer_passes(name: str, dtype: torch.dtype) -> None:
    report = check_regularizer(registry.REGULARIZERS[name](), registry.SHAPE, dtype)
    assert [found.name for found in report] == list(REGULARIZER_PROPERTIES)
    assert examine_regularizer_quickly(registry.REGULARIZERS[name](), registry.SHAPE, dtype).ok


def test_image_shapes_are_found() -> None:
    assert check_regularizer(FieldsOfExperts(4, 15)).ok
    assert check_regularizer(registry.REGULARIZERS["AnalysisOperator-Gradient"]()).ok


@pytest.mark.parametrize("name", wrong_regularizers.WRONG)
def test_the_property_of_a_regularizer_that_fails_is_named(name: str) -> None:
    case = wrong_regularizers.WRONG[name]
    with pytest.raises(lr.OperatorError) as caught:
        check_regularizer(case.regularizer())
    assert caught.value.failed_property == case.blamed
    assert case.words in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- own suites


class TestBlur(OperatorTests):
    def make(self) -> Blur:
        return Blur(torch.nn.Parameter(randn(3, 3)), (1, 5, 6))


class TestWeightedInSinglePrecision(OperatorTests):
    dtype = torch.float32

    def make(self) -> Inpainting:
        return Inpainting(registry.rand(1, 4, 4))


class TestExperts(RegularizerTests):
    image_shape = (1, 7, 8)

    def make(self) -> FieldsOfExperts:
        return FieldsOfExperts(3, 3)


def test_a_suite_fails_where_its_operator_does() -> None:
    class Suite(OperatorTests):
        def make(self) -> Custom:
            return wrong_operators.scaled(1.005)

    suite = Suite()
    suite.test_shape()  # type: ignore[attr-defined]
    with pytest.raises(lr.OperatorError, match=r"Suite: the property 'adjoint' fails: .* 1\.005"):
        suite.test_adjoint()  # type: ignore[attr-defined]
    Suite.skip = frozenset({"adjoint"})
    suite.test_adjoint()  # type: ignore[attr-defined]
    with pytest.raises(NotImplementedError, match="make"):
        OperatorTests().test_adjoint()  # type: ignore[attr-defined]


def test_a_suite_has_one_test_for_each_property() -> None:
    for suite, properties in ((OperatorTests, OPERATOR_PROPERTIES), (RegularizerTests, REGULARIZER_PROPERTIES)):
        assert len([name for name in dir(suite) if name.startswith("test_")]) == len(properties)
