"""How a regularizer enters the lower level: R(x) = f(W x), the parameters' gradients, roles and constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from learnreg.linear.samples import sum_samples
from learnreg.lower_level.latent import Latent
from learnreg.lower_level.regularizer import ParameterRole, SaddleTerms
from learnreg.testing.case import norms
from learnreg.testing.operators import examine_operator
from learnreg.testing.report import Property, Report, broken, holds, judged, skipped
from learnreg.testing.values import RegularizerCase, difference_steps

__all__ = [
    "check_analysis_operator",
    "check_parameter_gradients",
    "check_parameter_lipschitz",
    "check_parameter_roles",
    "check_saddle_terms",
    "terms_of",
]

_MOVE = 0.1


def terms_of(case: RegularizerCase) -> SaddleTerms:
    """W and f on the images of the case, without autograd."""
    with torch.no_grad():
        found: SaddleTerms = case.regularizer.saddle_terms(case.image_shape)
    return found


@torch.no_grad()
def check_saddle_terms(case: RegularizerCase) -> Property:
    """value(x) = f(W x), which solvers minimise instead of it; with latent variables, at the best of them."""
    terms = terms_of(case)
    domain, latent = tuple(terms.operator.domain_shape), terms.latent
    if domain != (case.image_shape if latent is None else (sum(_channels(latent)), *case.image_shape[1:])):
        return broken("saddle_terms", f"the operator takes {domain} for images of shape {case.image_shape}")
    value = 0.0
    for scale in (1e-2, 0.3, 10.0):
        x = case.images(scale)
        direct = case.value(x).double()
        joint = _joint(terms, x)
        through = terms.potential.to(case.dtype).value(terms.operator(joint)).double()
        if latent is not None:
            z = joint[:, latent.image_channels :].double()
            through = through + sum_samples(latent.cost.double() * z + 0.5 * latent.modulus * z * z)
        value = max(value, float(((direct - through).abs() / direct.abs().max().clamp_min(1e-300)).max()))
    problem = "value(x) is not potential(operator(x)) of saddle_terms, so that solvers minimise something else"
    return judged("saddle_terms", value, 100 * case.rounding, "relative difference of value and f(Wx)", problem)


def _channels(latent: Latent) -> tuple[int, int]:
    return latent.image_channels, latent.channels


def _joint(terms: SaddleTerms, x: Tensor) -> Tensor:
    """The image with the best latent variables for it, if there are any."""
    return x if terms.latent is None else torch.cat([x, terms.latent.solve(x)], 1)


def _probe(terms: SaddleTerms, x: Tensor) -> Tensor:
    """The image with some latent variables that depend on it alone, if there are any."""
    return x if terms.latent is None else torch.cat([x, x[:, :1].abs().expand(-1, terms.latent.channels, -1, -1)], 1)


def check_analysis_operator(
    case: RegularizerCase, examination: Callable[[Any, torch.dtype], Report] = examine_operator
) -> Property:
    """The operator W of saddle_terms passes ``check_operator``."""
    report = examination(terms_of(case).operator, case.dtype)
    if report.failed is not None:
        failed = report.failed
        problem = f"the operator {report.subject} of saddle_terms fails '{failed.name}': {failed.problem}"
        return Property("analysis operator", failed.value, failed.threshold, False, failed.measures, problem)
    return holds("analysis operator", f"{report.subject} has the {len(report.properties)} properties of an operator")


# ---- parameters ------------------------------------------------------------------------------------------------------


class _Parts(nn.Module):
    """The value, and what the saddle terms are made of, as one module whose parameters can be exchanged."""

    def __init__(self, regularizer: nn.Module) -> None:
        super().__init__()
        self.regularizer = regularizer

    def forward(self, x: Tensor, value: bool) -> Any:
        if value:
            return self.regularizer.value(x).sum()  # type: ignore[operator]
        terms = self.regularizer.saddle_terms(tuple(x.shape[1:]))  # type: ignore[operator]
        potential = terms.potential
        numbers = (torch.as_tensor(n, dtype=torch.float64) for n in (potential.weight, potential.smoothing))
        response = terms.operator(_probe(terms, x))
        cast, fixed = potential.to(x.dtype), response.detach()
        return response, *numbers, cast.grad(fixed), cast.weight_gradient(fixed)


def _call(case: RegularizerCase, parameters: Mapping[str, Tensor], x: Tensor, value: bool) -> Any:
    renamed = {f"regularizer.{name}": p for name, p in parameters.items()}
    return functional_call(_Parts(case.regularizer), renamed, (x, value))


def _copies(case: RegularizerCase) -> dict[str, Tensor]:
    """The learnable parameters, to be moved and differentiated, in the dtype of the case."""
    return {name: p.detach().to(case.dtype).requires_grad_() for name, p in case.parameters.items()}


def check_parameter_gradients(case: RegularizerCase) -> Property:
    """Gradients of the value in the parameters equal central differences."""
    parameters = _copies(case)
    if not parameters:
        return skipped("parameter gradients", "no learnable parameters")
    x, value, problem = case.images(), 0.0, ""
    with torch.enable_grad():
        total = _call(case, parameters, x, True)
        if not total.requires_grad:
            return broken("parameter gradients", "value does not depend on the learnable parameters")
        grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    for (name, p), gradient in zip(parameters.items(), grads, strict=True):
        direction = case.randn(*p.shape) if p.dim() else case.randn(1)[0]
        slope = 0.0 if gradient is None else float((gradient.double() * direction.double()).sum())
        found = min(_slope_error(case, parameters, name, direction, x, slope, s) for s in difference_steps(case))
        if not found <= value:
            value, problem = found, f"the gradient in {name} is not the derivative of value (detached?)"
    tolerance = 1e-5 if case.dtype == torch.float64 else 5e-2
    return judged("parameter gradients", value, tolerance, "relative difference to central differences", problem)


@torch.no_grad()
def _slope_error(
    case: RegularizerCase,
    parameters: Mapping[str, Tensor],
    name: str,
    direction: Tensor,
    x: Tensor,
    slope: float,
    step: float,
) -> float:
    """Relative difference between a slope in a parameter and a central difference."""
    p = parameters[name]
    sides = [float(_call(case, {**parameters, name: p + s * step * direction}, x, True)) for s in (1.0, -1.0)]
    difference = (sides[0] - sides[1]) / (2.0 * step)
    size = max(abs(slope), abs(difference), 1e-6 * abs(sides[0]))
    return abs(slope - difference) / size if size > 0 else 0.0


@torch.no_grad()
def check_parameter_roles(case: RegularizerCase) -> Property:
    """Parameters do what ``parameter_roles`` says: "operator" enters W affinely and nothing else, "log_weight" is the
    logarithm of a weight of f, "log_factor" that of a factor of f, "log_smoothing" that of a smoothing (less a
    constant), "log_curvature" that of f'' at the knots of a spline, "log_depth" that of the depths of its concave
    parts, and "potential" does not enter W. Where a Jacobian is declared, weights and smoothings grow by no more than
    it says."""
    name = "parameter_roles"
    roles: dict[str, str] = dict(getattr(case.regularizer, "parameter_roles", dict)())
    known = {key for key, _ in case.regularizer.named_parameters()}
    if unknown := sorted(set(roles) - known):
        return broken(name, f"there is no parameter {unknown[0]}; there are {', '.join(sorted(known))}")
    if strange := sorted(set(roles.values()) - set(get_args(ParameterRole))):
        return broken(name, f"role {strange[0]!r} is unknown; expected one of {', '.join(get_args(ParameterRole))}")
    parameters, x = _copies(case), case.images()
    for key, role in roles.items():
        problem = _contradiction(case, parameters, key, role, x) if key in parameters else ""
        if problem:
            return broken(name, f"{key} is declared as {role!r}, but {problem}")
    without = sorted(set(parameters) - set(roles))
    return holds(name, f"no role: {', '.join(without)}, which are not certified" if without else "as declared")


def _contradiction(case: RegularizerCase, parameters: Mapping[str, Tensor], key: str, role: str, x: Tensor) -> str:
    """What a parameter does that its role does not say; "" if nothing."""
    p = parameters[key]
    jacobian = _jacobian_bounds(case).get(role)
    response, weight, smoothing, slope, weighted_slope = _call(case, parameters, x, False)
    moved = _MOVE * (case.randn(*p.shape) if role == "operator" and p.dim() else torch.ones_like(p))
    ahead, weight_ahead, smoothing_ahead, slope_ahead, _ = _call(case, {**parameters, key: p + moved}, x, False)
    tolerance, grown = 100 * case.rounding, math.exp(_MOVE)
    same = {
        "the operator": role == "operator" or bool((norms(ahead - response) <= tolerance * norms(response)).all()),
        "the weight": role in ("log_weight", "log_factor", "potential") or _close(weight_ahead, weight, tolerance),
        "the smoothing": role in ("log_smoothing", "potential") or _close(smoothing_ahead, smoothing, tolerance),
    }
    touched = [what for what, unchanged in same.items() if not unchanged]
    if touched:
        return f"it changes {touched[0]}"
    if role == "potential":
        return ""
    if role == "latent_cost":
        return "" if _close(slope_ahead, slope, tolerance) else "it changes f'"
    if role == "log_curvature":
        apart = slope_ahead - slope - (grown - 1.0) * weighted_slope
        scaled = bool((apart.abs() <= tolerance * weighted_slope.abs().max()).all())
        return "" if scaled else f"adding {_MOVE:g} to it does not multiply f' by exp({_MOVE:g})"
    if role == "log_depth":
        parts = terms_of(case).potential.to(x.dtype).depth_gradients(response)  # type: ignore[attr-defined]
        allowed = math.expm1(_MOVE * (1.0 if jacobian is None else jacobian)) * parts.abs().sum(0)
        fits = bool(((slope_ahead - slope).abs() <= allowed + tolerance * allowed.max()).all())
        return "" if fits else "f' moves by more than its depth_gradients say"
    if role == "operator" and jacobian is not None:
        return ""
    if role == "operator":
        behind = _call(case, {**parameters, key: p - moved}, x, False)[0]
        bend = norms(ahead + behind - 2.0 * response)
        return "W is not affine in it" if bool((bend > tolerance * norms(response)).any()) else ""
    ratio = smoothing_ahead / smoothing if role == "log_smoothing" else weight_ahead / weight
    if jacobian is not None:
        growth = float(ratio.log().norm() / norms(moved.reshape(1, -1)))
        return "" if growth <= jacobian * (1.0 + tolerance) else f"its logarithm grows by more than {jacobian:.6g}"
    if role == "log_factor":
        fits = (ratio - grown).abs() <= tolerance
    elif role == "log_weight":
        fits = ((ratio - grown).abs() <= tolerance) | ((ratio - 1.0).abs() <= tolerance)
    else:
        fits = (ratio >= 1.0 - tolerance) & (ratio <= grown + tolerance)
    grows = bool((ratio > 1.0 + tolerance).any())
    return "" if bool(fits.all()) and grows else f"adding {_MOVE:g} to it does not multiply by exp({_MOVE:g})"


def _jacobian_bounds(case: RegularizerCase) -> dict[str, float]:
    """What ``parameter_jacobian_bounds`` declares, by role."""
    return dict(getattr(case.regularizer, "parameter_jacobian_bounds", dict)())


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool(((a - b).abs() <= tolerance * b.abs()).all())


def _gradient_size(
    case: RegularizerCase, parameters: dict[str, Tensor], inside: list[str], u: Tensor, p: Tensor, affine: bool
) -> tuple[float, Tensor]:
    """‖∂_theta <W_theta u, p>‖ over the parameters ``inside`` of W, and the derivative of W u along that gradient, the
    next p."""
    p = p.detach().requires_grad_(not affine)
    pairing = (_call(case, parameters, u, False)[0] * p).sum()
    grads = torch.autograd.grad(
        pairing, [parameters[key] for key in inside], create_graph=not affine, materialize_grads=True
    )
    squares = [g.square().sum() for g in grads]
    size = math.sqrt(sum(float(s.detach().double()) for s in squares))
    if not affine:
        return size, torch.autograd.grad(0.5 * torch.stack(squares).sum(), p)[0]
    origin = parameters | {key: torch.zeros_like(parameters[key]) for key in inside}
    found = dict(zip(inside, grads, strict=True))
    with torch.no_grad():
        return size, _call(case, origin | found, u, False)[0] - _call(case, origin, u, False)[0]


@torch.enable_grad()
def check_parameter_lipschitz(case: RegularizerCase) -> Property:
    """‖∂_theta <W_theta u, p>‖ is at most ``parameter_lipschitz`` times ‖u‖ ‖p‖ over all parameters of W, times the
    Jacobian of W's own parameters if one is declared, for the worst p of each u as far as an alternation finds it."""
    name = "parameter_lipschitz"
    roles: dict[str, str] = dict(getattr(case.regularizer, "parameter_roles", dict)())
    parameters = _copies(case)
    inside = [key for key, role in roles.items() if role == "operator" and key in parameters]
    if not inside:
        return skipped(name, "no learnable parameters of the operator")
    terms = terms_of(case)
    bound = terms.operator.parameter_lipschitz()
    if bound is None:
        return skipped(name, "not declared, so that no hypergradient is certified")
    jacobian = _jacobian_bounds(case).get("operator")
    bound = bound * (1.0 if jacobian is None else jacobian)
    worst = 0.0
    for u in (*torch.split(case.images(batch=2), 1), torch.ones(1, *case.image_shape).to(case.device, case.dtype)):
        p = torch.randn(_call(case, parameters, u, False)[0].shape, dtype=torch.float64, generator=case.generator).to(u)
        for _ in range(3):
            size, following = _gradient_size(case, parameters, inside, u, p, affine=jacobian is None)
            worst = max(worst, size / float(norms(_probe(terms, u)) * norms(p)))
            p = following
            if not float(p.norm()) > 0:
                break
    ratio = worst / bound if bound > 0 else (math.inf if worst > 0 else 0.0)
    problem = f"parameter_lipschitz() = {bound:.6g} of the operator is no bound: {worst:.6g} was reached"
    return judged(name, ratio, 1.0 + 10 * case.rounding, "largest gradient found, over the bound", problem)
