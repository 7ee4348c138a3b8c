"""What certificates rest on, tested of operators that this package did not write: linear, with their transpose, and no
larger than they say.

``examine`` is a screening when a problem is frozen for the first time; ``contradiction`` looks at an operator again
with every result, on the vectors of that result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from learnreg.errors import OperatorError
from learnreg.linear.bound_examination import wrong_bound
from learnreg.linear.operator import LinearOperator
from learnreg.linear.reparametrized import has_hooks
from learnreg.linear.samples import expand, inner_samples, norm_samples

__all__ = ["contradiction", "examine", "foreign_operators", "is_examined", "is_own_class", "unexamined_fault"]

_ADAPTERS = "learnreg.operators.adapters"
_FACTOR = -2.5
_SIZES = (1e9, 1e-9)
_DOUBLE, _SINGLE = 1e-9, 1e-4
"""The relative differences that rounding explains, of operators that compute in float64 and in float32."""

_ADVICE = (
    "lr.testing.check_operator(operator) says more; with operator.examine = False it is used all the same, and errors "
    "are estimates."
)


def is_own_class(kind: type) -> bool:
    """Whether a class is this package's, which its tests examine; adapters of foreign code are not."""
    return kind.__module__.startswith("learnreg.") and not kind.__module__.startswith(_ADAPTERS)


def foreign_operators(module: nn.Module) -> Iterator[LinearOperator]:
    """The operators in a module whose code is not this package's."""
    for part in module.modules():
        if isinstance(part, LinearOperator) and (has_hooks(part) or not is_own_class(type(part))):
            yield part


def examine(operator: LinearOperator, name: str = "forward") -> None:
    """Screen each foreign operator within this one, by six applications to two images each and a backward pass, and the
    bounds that it declares by ten more at most; the outcome is kept until its tensors or attributes change. ``name``:
    where the operator stands in the problem.

    Raises
    ------
    OperatorError: it is not linear, couples samples, its adjoint or its derivative is not A^T, or one of its bounds is
    none. An adjoint that is declared inexact (``adjoint_mismatch``) may be so.
    """
    for part in foreign_operators(operator):
        if not part.examine:
            continue
        failed, problem = part._known("examination", partial(_screen, part))
        if failed:
            raise OperatorError(f"the {name} operator {_named(part)}: {problem} {_ADVICE}", failed)


def is_examined(operator: LinearOperator) -> bool:
    """Whether nobody asked to take a foreign operator as it is."""
    return all(part.examine for part in foreign_operators(operator))


def unexamined_fault(operator: LinearOperator, name: str) -> str:
    """A sentence about what the examination would have found of an operator that nobody examined; "" if nothing."""
    for part in foreign_operators(operator):
        if not part.examine:
            failed, problem = part._known("examination", partial(_screen, part))
            if failed:
                return f"The {name} operator {_named(part)} was not examined, and {problem}"
    return ""


def _named(operator: LinearOperator) -> str:
    return getattr(operator, "name", type(operator).__name__)


def _screen(operator: LinearOperator) -> tuple[str, str]:
    """The property that fails and a sentence; two empty ones if none does."""
    device = operator._device()
    generator = torch.Generator().manual_seed(5)

    def noise(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(2, *shape, dtype=torch.float64, generator=generator).to(device)

    x, y = noise(operator.domain_shape), noise(operator.range_shape)
    images: list[Tensor] = []
    rounding = _SINGLE if operator.unit_roundoff > 0 else _DOUBLE
    for which, apply, t in (("forward", operator.forward, x), ("adjoint", operator.adjoint, y)):
        image = apply(t.clone()).detach().clone()
        if not bool(torch.isfinite(image).all()):
            return "finite", f"its {which} makes NaN or infinite numbers of normal noise."
        if rounding == _DOUBLE and torch.equal(image, image.float().double()) and bool((image != image.round()).any()):
            rounding = _SINGLE
        if problem := _nonlinear(which, apply, t, image, rounding):
            return "linearity", problem
        images.append(image)
    if operator.adjoint_mismatch() > 0:
        return "", ""
    gap = _adjoint_gap(x, images[0], y, images[1])
    if not gap <= rounding:
        return "adjoint", (
            f"its adjoint is not the transpose of its forward: |<Ax,y> - <x,By>| is {gap:.1e} of its size. Every bound "
            "rests on gradients; correct the adjoint."
        )
    found = _derivative(operator, x, y, images[1], rounding)
    if found[0] or type(operator).__module__.startswith(_ADAPTERS):  # what adapters declare is looked at when made
        return found
    return wrong_bound(operator, x, rounding)


def _nonlinear(which: str, apply: Callable[[Tensor], Tensor], t: Tensor, image: Tensor, rounding: float) -> str:
    """A sentence if A v, A(u - 2.5 v) beside each other, or A at other sizes, are not what A u and A v say."""
    mixed = apply(torch.stack([t[1], t[0] + _FACTOR * t[1]])).detach()
    expected = torch.stack([image[1], image[0] + _FACTOR * image[1]])
    scale = norm_samples(image).max()
    gap = float(norm_samples(mixed - expected).max() / scale) if bool(scale > 0) else float(mixed.abs().max())
    if not gap <= 10 * rounding:
        return (
            f"its {which} is not linear, couples the samples of a batch or changes from call to call: A(u - 2.5 v) "
            f"differs from A u - 2.5 A v by {gap:.1e} (relative). An affine one becomes linear when A(0) is subtracted "
            "and moved to the data."
        )
    sizes = torch.tensor(_SIZES, dtype=t.dtype, device=t.device)
    scaled = apply(expand(sizes, t) * t).detach()
    gaps = norm_samples(scaled / expand(sizes, scaled) - image) / norm_samples(image).clamp_min(1e-300)
    if not float(gaps.max()) <= 10 * rounding:
        size = _SIZES[int(gaps.argmax())]
        return f"its {which} is not linear: of images {size:g} times as large it makes another image (does it clip?)."
    return ""


def _adjoint_gap(x: Tensor, image: Tensor, y: Tensor, back: Tensor) -> float:
    """|<Ax, y> - <x, By>| over the size that both have for noise."""
    left, right = inner_samples(image, y), inner_samples(x, back)
    size = torch.maximum(norm_samples(image), norm_samples(back))
    return float(((left - right).abs() / size.clamp_min(1e-300)).nan_to_num(math.inf).max())


def _derivative(operator: LinearOperator, x: Tensor, y: Tensor, back: Tensor, rounding: float) -> tuple[str, str]:
    """Whether autograd of <A x, y> gives A^T y, and its derivative in y is A again."""
    with torch.inference_mode(False), torch.enable_grad():
        point, weight = x.clone().requires_grad_(), y.clone().requires_grad_()
        image = operator(point)
        if not image.requires_grad:
            return "differentiability", "its result is cut off from autograd; build it of torch operations."
        (slope,) = torch.autograd.grad((image * weight).sum(), point, create_graph=True)
        if not slope.requires_grad:
            return "differentiability", "its derivative cannot be differentiated again."
        (again,) = torch.autograd.grad((slope * point.detach()).sum(), weight, materialize_grads=True)
    for found, expected in ((slope, back), (again, image)):
        gap = float(norm_samples(found.detach() - expected.detach()).max())
        if not gap <= 100 * rounding * float(norm_samples(expected.detach()).max()):
            return "differentiability", f"its derivative by autograd is not the operator itself (gap {gap:.1e})."
    return "", ""


@torch.no_grad()
def contradiction(operator: LinearOperator, x: Tensor) -> str:
    """A sentence if an operator contradicts at x what is known of it: <A x, p> = <x, A^T p> for p = A x with other
    signs, and √gram_lower_bound ‖x‖ <= ‖A x‖ <= norm_bound ‖x‖; "" otherwise. Costs two applications."""
    image = operator(x)
    signs = 1.0 - 2.0 * (torch.arange(image[0].numel(), device=x.device).mul(2654435761).bitwise_right_shift(13) % 2)
    p = signs.to(image).view(image.shape[1:]) * image
    back = operator.adjoint(p)
    if not bool(torch.isfinite(image).all() & torch.isfinite(back).all()):
        return ""  # blame_operators says more
    gap = (inner_samples(image, p) - inner_samples(x, back)).abs()
    single = x.dtype == torch.float32 or any(part.unit_roundoff > 0 for part in foreign_operators(operator))
    rounding = _SINGLE if single else _DOUBLE
    length, size = norm_samples(image), norm_samples(x)
    bound, lowest = operator.norm_bound(), math.sqrt(max(operator.gram_lower_bound(), 0.0))
    kind = _named(operator)
    if not bool((gap <= 10 * rounding * bound * size * length + 1e-300).all()):
        return f"{kind}: its adjoint is not its transpose at x; did it change since it was examined?"
    if not bool((length <= bound * size * (1.0 + rounding)).all()):
        return f"{kind}: its norm is above {bound:.6g}, its norm_bound(); did it change since that was found?"
    if not bool((length >= lowest * size * (1.0 - rounding)).all()):
        return f"{kind}: ‖A x‖² is below gram_lower_bound() ‖x‖², {lowest**2:.6g} ‖x‖²."
    return ""
