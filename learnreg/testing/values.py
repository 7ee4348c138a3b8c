"""What a regularizer owes as a function of the image: shapes, purity, convexity, and true derivatives."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from learnreg.errors import LearnregError, OperatorError
from learnreg.linear.arguments import LARGEST_SEED, check_type, whole_number
from learnreg.linear.operator import LinearOperator
from learnreg.linear.shapes import checked_shape
from learnreg.testing.basics import has_single_precision
from learnreg.testing.case import largest, norms
from learnreg.testing.report import Property, broken, holds, judged, skipped

__all__ = [
    "RegularizerCase",
    "check_batch",
    "check_boundedness",
    "check_convexity",
    "check_determinism",
    "check_dtype",
    "check_finite",
    "check_gradient",
    "check_hessian",
    "check_purity",
    "check_shape",
    "difference_steps",
    "regularizer_case",
]

_SCALES = (0.0, 1e-2, 1e-1, 1.0, 30.0)
_FAR, _DENSE_PIXELS = 1e4, 400
_DEFAULT_SIDES = {1: ((24,), (97,)), 2: ((12, 13), (32, 33), (96, 97)), 3: ((5, 6, 7), (9, 10, 11))}


@dataclass
class RegularizerCase:
    """A regularizer with the images, the dtype and the tolerance it is examined with. rounding: relative difference
    that is put down to rounding."""

    regularizer: Any
    image_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    rounding: float
    generator: torch.Generator = field(repr=False)
    parameters_at_start: dict[str, Tensor] = field(repr=False)

    def value(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.regularizer.value(x))

    def gradient(self, x: Tensor, create_graph: bool = False) -> Tensor:
        """∇R(x); under ``create_graph`` differentiable again, if x requires a gradient."""
        with torch.enable_grad():
            x = x if create_graph else x.detach().requires_grad_()
            return torch.autograd.grad(self.value(x).sum(), x, create_graph=create_graph)[0]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.regularizer.named_parameters() if p.requires_grad}

    def images(self, scale: float = 0.3, batch: int = 3) -> Tensor:
        """Gaussian images, the last one smooth: constant with a step."""
        drawn = torch.randn(batch, *self.image_shape, dtype=torch.float64, generator=self.generator)
        drawn[-1] = 0.5
        drawn[-1, ..., : self.image_shape[-1] // 2] = -0.5
        return (scale * drawn).to(self.device, self.dtype)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator).to(self.device, self.dtype)

    def in_dtype(self, dtype: torch.dtype) -> RegularizerCase:
        return replace(self, dtype=dtype)


def regularizer_case(
    regularizer: Any, image_shape: tuple[int, ...] | None, dtype: torch.dtype, seed: int
) -> RegularizerCase:
    """The case, or OperatorError for something that is no regularizer."""
    kind = regularizer.__name__ if isinstance(regularizer, type) else type(regularizer).__name__
    missing = [name for name in ("value", "saddle_terms") if not callable(getattr(regularizer, name, None))]
    if isinstance(regularizer, type) or missing or not isinstance(regularizer, nn.Module):
        what = "is a class, not an instance" if isinstance(regularizer, type) else "is no regularizer"
        lacks = f" (no {', '.join(missing)})" if missing else ""
        raise OperatorError(
            f"check_regularizer: {kind} {what}{lacks}; expected an nn.Module with value and saddle_terms, see "
            "learnreg.regularizers.Regularizer.",
            "interface",
        )
    check_type(dtype, torch.dtype, "check_regularizer(dtype)", "torch.float64 or torch.float32")
    seed = whole_number(seed, "check_regularizer(seed)", least=-LARGEST_SEED, most=LARGEST_SEED)
    tensors = [*regularizer.parameters(), *regularizer.buffers()]
    at_start = {name: p.detach().clone() for name, p in regularizer.named_parameters()}
    return RegularizerCase(
        regularizer=regularizer,
        image_shape=_some_shape(regularizer) if image_shape is None else checked_shape(image_shape, "image_shape"),
        dtype=dtype,
        device=tensors[0].device if tensors else torch.device("cpu"),
        rounding=1e-11 if dtype == torch.float64 else 2e-5,
        generator=torch.Generator().manual_seed(seed),
        parameters_at_start=at_start,
    )


def _some_shape(regularizer: nn.Module) -> tuple[int, ...]:
    """The domain of the regularizer's own operator, or the smallest of a few images that it takes."""
    for module in regularizer.modules():
        if isinstance(module, LinearOperator):
            return tuple(module.domain_shape)
    channels, dimensions = (
        getattr(regularizer, f"image_{name}", n) for name, n in (("channels", 1), ("dimensions", 2))
    )
    shapes = [(channels, *sides) for sides in _DEFAULT_SIDES[dimensions]]
    for shape in shapes:
        try:
            regularizer.value(torch.zeros(1, *shape))  # type: ignore[operator]
        except LearnregError:
            continue
        except Exception:
            break
        return shape
    return shapes[0]


# ---- the value -------------------------------------------------------------------------------------------------------


def check_shape(case: RegularizerCase) -> Property:
    """value(x) has shape (batch,), with and without autograd."""
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            result = case.value(case.images())
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        if got != (3,):
            return broken("shape", f"value of {(3, *case.image_shape)} returned {got}, expected (3,): one per sample")
    return holds("shape", "one value per sample")


@torch.no_grad()
def check_dtype(case: RegularizerCase) -> Property:
    """The value has the dtype of the image, float64 with its digits."""
    for dtype in (torch.float32, torch.float64) if case.dtype == torch.float64 else (case.dtype,):
        result = case.value(case.images().to(dtype))
        if result.dtype != dtype:
            return broken("dtype", f"value of {dtype} images is {result.dtype}; convert parameters with .to(x.dtype)")
    if case.dtype == torch.float64 and has_single_precision(case.value(case.images())):
        return broken("dtype", "value of float64 images has the digits of float32 alone")
    return holds("dtype", "values keep the dtype of the image")


@torch.no_grad()
def check_finite(case: RegularizerCase) -> Property:
    """No NaN or infinity, in values and gradients, for images of any size and for 0."""
    x = torch.cat([case.images(scale) for scale in _SCALES])
    values, gradients = (torch.isfinite(t).flatten(1).all(1) for t in (case.value(x)[:, None], case.gradient(x)))
    for i, scale in enumerate(scale for scale in _SCALES for _ in range(len(x) // len(_SCALES))):
        if not bool(values[i]):
            return broken("finite", f"value of images of size {scale:g} is NaN or infinite")
        if not bool(gradients[i]):
            return broken("finite", f"the gradient at images of size {scale:g} is NaN or infinite (0/0 at 0?)")
    return holds("finite", "values and gradients are finite")


@torch.no_grad()
def check_determinism(case: RegularizerCase) -> Property:
    """Two calls agree, also with and without autograd."""
    x = case.images()
    first, again = case.value(x.clone()), case.value(x.clone())
    with torch.enable_grad():
        recorded = case.value(x.clone()).detach()
    value = max(_apart(first, again), _apart(first, recorded))
    problem = "two calls with the same images differ; take randomness out of it"
    if _apart(first, again) <= 100 * case.rounding:
        problem = "value with and without torch.no_grad() differ"
    return judged("determinism", value, 100 * case.rounding, "relative difference of two calls", problem)


def check_purity(case: RegularizerCase) -> Property:
    """Images and parameters are left alone."""
    x = case.images()
    kept = x.clone()
    case.gradient(x)
    with torch.no_grad():
        case.value(x)
    if not torch.equal(x, kept):
        return broken("purity", "value changes its input in place; work on a copy")
    start = case.parameters_at_start
    moved = [n for n, p in case.regularizer.named_parameters() if not torch.equal(p.detach(), start[n])]
    if moved:
        return broken("purity", f"value changes the parameter {moved[0]}; project in project_(), after a step")
    return holds("purity", "images and parameters are unchanged")


@torch.no_grad()
def check_batch(case: RegularizerCase) -> Property:
    """Samples are independent."""
    x = case.images()
    alone = torch.cat([case.value(x[i : i + 1]) for i in range(len(x))])
    value = _apart(case.value(x), alone)
    problem = "value of a batch is not value of each sample; sum over all axes but the first"
    return judged("batch", value, 100 * case.rounding, "relative difference between a batch and its samples", problem)


def _apart(a: Tensor, b: Tensor) -> float:
    difference, scale = (a.double() - b.double()).abs(), b.double().abs()
    return float(torch.where(difference == 0, difference, difference / scale).max())


# ---- shape of the function -------------------------------------------------------------------------------------------


def check_boundedness(case: RegularizerCase) -> Property:
    """Far away R does not fall: <∇R(s d), d> >= 0 for large s, so that the lower level has a solution."""
    constant = torch.ones_like(case.images(batch=1))
    d = torch.cat([case.images(1.0), constant, -constant])
    gradient = case.gradient(_FAR * d)
    sizes = norms(gradient)
    hidden = _FAR * torch.finfo(gradient.dtype).eps * sizes.max()  # by rounding: along constants there may be no more
    size = (sizes.clamp_min(hidden) * norms(d)).clamp_min(1e-300)
    value = float(((gradient.double() * d.double()).flatten(1).sum(1).neg() / size).max())
    problem = f"R falls without end along a line (slope at distance {_FAR:g}); it has to be bounded below"
    measures = "relative fall of R far away"
    return judged("bounded below", max(value, 0.0) if value == value else value, 100 * case.rounding, measures, problem)


def check_convexity(case: RegularizerCase) -> Property:
    """∇R is monotone between images at several scales, also between images that differ in one pixel, and on small
    images no Hessian has a negative eigenvalue; the same of R + ½‖√rho W x‖², where the potential has a concavity
    rho. Not of a function that is given by its value and declares nothing."""
    with torch.no_grad():
        if not case.regularizer.saddle_terms(case.image_shape).potential.has_modulus:
            return skipped("convexity", "neither convex = True nor a modulus is declared, so that errors are estimates")
    value, case = 0.0, _convexified(case)
    for scale in _SCALES[1:]:
        a, b = case.images(scale), case.images(scale)
        single = a.clone()
        places = torch.randint(math.prod(case.image_shape), (len(a), 1), generator=case.generator).to(case.device)
        single.view(len(a), -1).scatter_add_(1, places, case.images(scale).flatten(1)[:, :1])
        slope, *others = case.gradient(torch.cat([a, b, single, -a])).double().chunk(4)
        for other, its_slope in zip((b, single, -a), others, strict=True):
            apart = (a - other).double()
            fall = -((slope - its_slope) * apart).flatten(1).sum(1)
            size = norms(apart) * (norms(slope) + norms(its_slope))
            value = max(value, float(torch.where(size > 0, fall / size, 0.0).max()))
        if math.prod(case.image_shape) <= _DENSE_PIXELS:
            spectrum = torch.linalg.eigvalsh(_symmetric(_hessian(case, a[:1])))
            value = max(value, float(-spectrum[0] / spectrum.abs().max().clamp_min(1e-300)))
    problem = "R is not convex: its gradient is not monotone, or its Hessian has a negative eigenvalue"
    if isinstance(case, _ConvexifiedCase):
        problem = "R is less convex than the concavity of its potential says"
    return judged("convexity", value, 100 * case.rounding, "largest relative negative curvature found", problem)


class _ConvexifiedCase(RegularizerCase):
    """R + ½‖√rho W x‖² in the place of R."""

    def value(self, x: Tensor) -> Tensor:
        terms = self.regularizer.saddle_terms(self.image_shape)
        rho = torch.as_tensor(terms.potential.concavity).detach().to(x)
        response = terms.operator(x)
        bent: Tensor = (rho * response * response).flatten(1).sum(1)
        return super().value(x) + 0.5 * bent


def _convexified(case: RegularizerCase) -> RegularizerCase:
    """The case itself for a convex potential."""
    with torch.no_grad():
        convex = case.regularizer.saddle_terms(case.image_shape).potential.convex
    return case if convex else _ConvexifiedCase(**vars(case))


@torch.no_grad()
def check_gradient(case: RegularizerCase) -> Property:
    """The gradient from autograd equals central differences of the value."""
    value = 0.0
    for scale in _SCALES[2:]:
        x, d = case.images(scale), case.images(1.0)
        gradient = case.gradient(x)
        slope = (gradient.double() * d.double()).flatten(1).sum(1)
        size = torch.maximum(slope.abs(), 1e-2 * norms(gradient) * norms(d)).clamp_min(1e-300)
        steps = difference_steps(case)
        ahead, behind = (case.value(torch.cat([x + s * step * d for step in steps])) for s in (1.0, -1.0))
        width = torch.tensor(steps, dtype=torch.float64).repeat_interleave(len(x)).to(case.device)
        difference = ((ahead.double() - behind.double()) / (2.0 * width)).view(len(steps), -1)
        errors = ((difference - slope).abs() / size).nan_to_num(math.inf)
        value = max(value, float(errors.amax(1).min()))
    problem = "autograd of value is not its derivative (a detach or no_grad inside, or a backward of its own)"
    tolerance = 1e-6 if case.dtype == torch.float64 else 3e-2
    return judged("gradient", value, tolerance, "relative difference to central differences", problem)


def difference_steps(case: RegularizerCase) -> tuple[float, ...]:
    """Step sizes of central differences: at one of them a true derivative shows, whatever bends or cancels."""
    return (1e-4, 1e-6, 1e-7) if case.dtype == torch.float64 else (1e-1, 1e-2, 1e-3, 1e-4)


def check_hessian(case: RegularizerCase) -> Property:
    """Autograd twice gives a symmetric Hessian, which equals central differences of the gradient."""
    if case.dtype != torch.float64:
        return skipped("hessian", "in float64 alone")
    x, u, v = (case.images() for _ in range(3))
    both = _hessian_vector(case, torch.cat([x, x]), torch.cat([u, v]))
    if both is None:
        return broken("hessian", "the gradient cannot be differentiated again; build value from torch operations")
    products = both.chunk(2)
    uHv, vHu = ((a * b).flatten(1).sum(1) for a, b in ((u, products[1]), (v, products[0])))
    size = (norms(products[0]) * norms(v) + norms(products[1]) * norms(u)).clamp_min(1e-300)
    asymmetry = float(((uHv - vHu).abs() / size).max())
    step = 1e-7
    ahead, behind = case.gradient(torch.cat([x + step * u, x - step * u])).chunk(2)
    difference = (ahead - behind) / (2.0 * step)
    wrong = largest(products[0] - difference, difference, norms(difference).max().expand(len(x)))
    if not asymmetry <= 1e-9:
        return judged("hessian", asymmetry, 1e-9, "relative asymmetry", "second derivatives are not symmetric")
    problem = "second derivatives by autograd are not those of the gradient"
    return judged("hessian", wrong, 1e-4, "relative difference to central differences of the gradient", problem)


def _hessian_vector(case: RegularizerCase, x: Tensor, v: Tensor) -> Tensor | None:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        gradient = case.gradient(x, create_graph=True)
        if not gradient.requires_grad:
            return None
        (product,) = torch.autograd.grad(gradient, x, v, allow_unused=True)
    return torch.zeros_like(v) if product is None else product


def _hessian(case: RegularizerCase, x: Tensor) -> Tensor:
    """The dense Hessian at one image."""
    size = x[0].numel()
    units = torch.eye(size, dtype=case.dtype, device=case.device).reshape(size, *case.image_shape)
    product = _hessian_vector(case, x.expand(size, *case.image_shape), units)
    rows = torch.zeros(size, size, dtype=case.dtype) if product is None else product.reshape(size, size)
    return rows.double()


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.T)
