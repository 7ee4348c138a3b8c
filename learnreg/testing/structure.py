"""How a regularizer enters the lower level: R(x) = f(W x), the parameters' gradients, roles and constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from learnreg.linear.parameter_groups import Density, ParameterGroup
from learnreg.lower_level.saddle_terms import SaddleTerms
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

_MOVE, _FIT, _ROUGH_FIT, _SMALL = 0.1, 1e-6, 1e-2, 1e-3


def terms_of(case: RegularizerCase) -> SaddleTerms:
    """W and f on the images of the case, without autograd."""
    with torch.no_grad():
        found: SaddleTerms = case.regularizer.saddle_terms(case.image_shape)
    return found


@torch.no_grad()
def check_saddle_terms(case: RegularizerCase) -> Property:
    """value(x) = f(W x), which solvers minimise instead of it; with latent variables, at the best of them."""
    terms = terms_of(case)
    domain = tuple(terms.operator.domain_shape)
    if domain != (case.image_shape[0] + terms.latent.channels, *case.image_shape[1:]):
        return broken("saddle_terms", f"the operator takes {domain} for images of shape {case.image_shape}")
    scales = (1e-2, 0.3, 10.0)
    x = torch.cat([case.images(scale) for scale in scales])
    joint = terms.latent.extend(x)
    through = terms.potential.to(case.dtype).value(terms.operator(joint)).double() + terms.latent.value(joint.double())
    direct, through = (t.double().view(len(scales), -1) for t in (case.value(x), through))
    size = direct.abs().amax(1, keepdim=True).clamp_min(1e-300)
    value = float(((direct - through).abs() / size).max())
    problem = "value(x) is not potential(operator(x)) of saddle_terms, so that solvers minimise something else"
    return judged("saddle_terms", value, 100 * case.rounding, "relative difference of value and f(Wx)", problem)


def _probe(terms: SaddleTerms, x: Tensor) -> Tensor:
    """The image with some latent variables that depend on it alone, if there are any."""
    return terms.latent.lift(x, x[:, :1].abs().repeat_interleave(terms.latent.channels, 1))


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

    def forward(self, x: Tensor, t: Tensor | None, value: bool) -> Any:
        if value:
            return self.regularizer.value(x).sum()  # type: ignore[operator]
        terms = self.regularizer.saddle_terms(tuple(x.shape[1:]))  # type: ignore[operator]
        response = terms.operator(_probe(terms, x))
        slope = terms.potential.to(x.dtype).grad(response.detach() if t is None else t)
        return {
            "operator": response,
            "potential": slope,
            "cost": terms.latent.cost,
        }


def _with(case: RegularizerCase, parameters: Mapping[str, Tensor], *arguments: Any) -> Any:
    renamed = {f"regularizer.{name}": p for name, p in parameters.items()}
    return functional_call(_Parts(case.regularizer), renamed, arguments)


def _value(case: RegularizerCase, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The sum of the values with other parameters."""
    found: Tensor = _with(case, parameters, x, None, True)
    return found


def _parts(
    case: RegularizerCase, parameters: Mapping[str, Tensor], x: Tensor, t: Tensor | None = None
) -> dict[str, Tensor]:
    """What the parts of ``ParameterGroup`` make with other parameters: W x, f' at t, W x if None, and the cost of
    latent variables."""
    found: dict[str, Tensor] = _with(case, parameters, x, t, False)
    return found


def _copies(case: RegularizerCase) -> dict[str, Tensor]:
    """The learnable parameters, to be moved and differentiated, in the dtype of the case."""
    return {name: p.detach().to(case.dtype).requires_grad_() for name, p in case.parameters.items()}


def check_parameter_gradients(case: RegularizerCase) -> Property:
    """Gradients of the value in the parameters equal central differences."""
    parameters = _copies(case)
    if not parameters:
        return skipped("parameter gradients", "no learnable parameters")
    x, value, problem = case.images(), 0.0, ""
    tolerance = 1e-5 if case.dtype == torch.float64 else 5e-2
    with torch.enable_grad():
        total = _value(case, parameters, x)
        if not total.requires_grad:
            return broken("parameter gradients", "value does not depend on the learnable parameters")
        grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    for (name, p), gradient in zip(parameters.items(), grads, strict=True):
        direction = case.randn(*p.shape) if p.dim() else case.randn(1)[0]
        slope = 0.0 if gradient is None else float((gradient.double() * direction.double()).sum())
        found = math.inf
        for step in difference_steps(case):
            found = min(found, _slope_error(case, parameters, name, direction, x, slope, step))
            if found <= tolerance:
                break
        if not found <= value:
            value, problem = found, f"the gradient in {name} is not the derivative of value (detached?)"
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
    sides = [float(_value(case, {**parameters, name: p + s * step * direction}, x)) for s in (1.0, -1.0)]
    difference = (sides[0] - sides[1]) / (2.0 * step)
    size = max(abs(slope), abs(difference), 1e-6 * abs(sides[0]))
    return abs(slope - difference) / size if size > 0 else 0.0


@torch.no_grad()
def check_parameter_roles(case: RegularizerCase) -> Property:
    """Parameters do what the groups do that ``parameter_roles`` names: they change that part alone, the operator
    affinely, the potential's f' along the densities of the group; no faster than its Jacobian, where one is
    declared."""
    name = "parameter_roles"
    roles: dict[str, str] = dict(getattr(case.regularizer, "parameter_roles", dict)())
    known = {key for key, _ in case.regularizer.named_parameters()}
    if unknown := sorted(set(roles) - known):
        return broken(name, f"there is no parameter {unknown[0]}; there are {', '.join(sorted(known))}")
    groups = {group.name: group for group in terms_of(case).parameter_groups()}
    learned = {role for key, role in roles.items() if key in case.parameters}
    if strange := sorted(learned - set(groups) - ({"operator"} if _undeclared(case) else set())):
        return broken(name, f"role {strange[0]!r} is unknown; expected one of {', '.join(sorted(groups))}")
    parameters, x = _copies(case), case.images()
    for key, role in roles.items():
        problem = _contradiction(case, parameters, key, groups.get(role), x) if key in parameters else ""
        if problem:
            return broken(name, f"{key} is declared as {role!r}, but {problem}")
    without = sorted(set(parameters) - set(roles))
    return holds(name, f"no role: {', '.join(without)}, which are not certified" if without else "as declared")


def _undeclared(case: RegularizerCase) -> bool:
    """Whether the operator says nothing of its parameters, so that nothing is certified."""
    return terms_of(case).operator.parameter_lipschitz() is None


_NAMES = {"operator": "the operator", "potential": "the potential", "cost": "the cost of latent variables"}


def _contradiction(
    case: RegularizerCase, parameters: Mapping[str, Tensor], key: str, group: ParameterGroup | None, x: Tensor
) -> str:
    """What a parameter does that its group does not say; "" if nothing."""
    p, part = parameters[key], "operator" if group is None else group.part
    moved = _MOVE * (case.randn(*p.shape) if part == "operator" and p.dim() else torch.ones_like(p))
    here = _parts(case, parameters, x)
    ahead = _parts(case, {**parameters, key: p + moved}, x, here["operator"])
    tolerance = 100 * case.rounding
    for other, name in _NAMES.items():
        if other != part and not _close(ahead[other], here[other], tolerance):
            seen = _explanation(case, parameters, key, x) if other == "potential" else ""
            return f"it changes {name}{seen}"
    declared = "" if group is None else group.name
    jacobian = _jacobian_bounds(case).get(declared or "operator")
    if part == "operator" and jacobian is None:
        behind = _parts(case, {**parameters, key: p - moved}, x)["operator"]
        bend = norms(ahead["operator"] + behind - 2.0 * here["operator"])
        return "W is not affine in it" if bool((bend > tolerance * norms(here["operator"])).any()) else ""
    if isinstance(group, Density):
        speed = _speed_along(case, parameters, key, group, x)
        if speed is None:
            return f"f' does not move with it as with {declared!r}{_explanation(case, parameters, key, x)}"
        allowed = 1.0 if jacobian is None else jacobian
        fits = 0.0 < speed <= allowed * (1.0 + _fit(case))
        return "" if fits else f"its numbers grow by {speed:.6g} for each unit of it"
    return ""


def _fit(case: RegularizerCase) -> float:
    return _FIT if case.dtype == torch.float64 else _ROUGH_FIT


def _explanation(case: RegularizerCase, parameters: Mapping[str, Tensor], key: str, x: Tensor) -> str:
    """Which densities of the potential it moves f' along instead, to be appended to a sentence."""
    for group in terms_of(case).parameter_groups():
        if isinstance(group, Density) and _speed_along(case, parameters, key, group, x):
            return f": f' moves with it as with {group.name!r}"
    return ""


@torch.enable_grad()
def _speed_along(
    case: RegularizerCase, parameters: Mapping[str, Tensor], key: str, group: Density, x: Tensor
) -> float | None:
    """‖c‖ / ‖1‖ where f' moves by sum_j c_gj s_gj (t) as all entries of the parameter grow by the same, g groups of
    responses and j the densities of each; None if it moves otherwise."""
    p = parameters[key].detach().requires_grad_()
    slope = _parts(case, {**parameters, key: p}, x)["potential"]
    if not slope.requires_grad:
        return 0.0
    weights = torch.zeros_like(slope, requires_grad=True)  # of forward differentiation by two backward passes
    (back,) = torch.autograd.grad(slope, p, weights, create_graph=True, materialize_grads=True)
    (moved,) = torch.autograd.grad(back.sum(), weights, materialize_grads=True)
    with torch.no_grad():
        terms = terms_of(case)
        potential, t = terms.potential.to(x.dtype), terms.operator(_probe(terms, x))
        (own,) = (g for g in potential.parameter_groups() if g.name == group.name and isinstance(g, Density))
        y = potential.grad(t)
        if own.share is not None:
            if bool(own.share.embedded(own.share.within(moved), t.shape[1]).ne(moved).any()):
                return None
            t, y, moved = own.share.within(t), own.share.within(y), own.share.within(moved)
        parts = own.parts(t, y)
        shape = (1,) * (t.dim() - 1 - len(own.shape)) + own.shape
        apart = [axis for axis, size in enumerate(shape, 1) if size > 1]
        together = [axis for axis in range(t.dim()) if axis not in apart]
        order = [*apart, *together]
        count = math.prod(t.shape[axis] for axis in apart)
        A = parts.permute(0, *(axis + 1 for axis in order)).reshape(len(parts), count, -1).permute(1, 2, 0).double()
        target = moved.permute(order).reshape(count, -1, 1).double()
        c = torch.linalg.pinv(A, rtol=1e-9) @ target
        if float((A @ c - target).norm()) > _fit(case) * float(target.norm()):
            return None
        return float(c.norm()) / math.sqrt(p.numel())


def _jacobian_bounds(case: RegularizerCase) -> dict[str, float]:
    """What ``parameter_jacobian_bounds`` declares, by role."""
    return dict(getattr(case.regularizer, "parameter_jacobian_bounds", dict)())


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool(((a - b).abs() <= tolerance * (b.abs() + _SMALL * b.abs().max())).all())


def _gradient_size(
    case: RegularizerCase, parameters: dict[str, Tensor], inside: list[str], u: Tensor, p: Tensor, affine: bool
) -> tuple[float, Tensor]:
    """‖∂_theta <W_theta u, p>‖ over the parameters ``inside`` of W, and the derivative of W u along that gradient, the
    next p."""
    p = p.detach().requires_grad_(not affine)
    pairing = (_parts(case, parameters, u)["operator"] * p).sum()
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
        return size, _parts(case, origin | found, u)["operator"] - _parts(case, origin, u)["operator"]


@torch.enable_grad()
def check_parameter_lipschitz(case: RegularizerCase) -> Property:
    """‖∂_theta <W_theta u, p>‖ is at most ``parameter_lipschitz`` times ‖u‖ ‖p‖ over all parameters of W, times the
    Jacobian of W's own parameters if one is declared, for the worst p of each u as far as an alternation finds it."""
    name = "parameter_lipschitz"
    roles: dict[str, str] = dict(getattr(case.regularizer, "parameter_roles", dict)())
    parameters = _copies(case)
    own = {group.name for group in terms_of(case).operator.parameter_groups()}
    inside = [key for key, role in roles.items() if role in own and key in parameters]
    bound = terms_of(case).operator.parameter_lipschitz()
    if bound is None:
        return skipped(name, "not declared, so that no hypergradient is certified")
    if not inside:
        return skipped(name, "no learnable parameters of the operator")
    jacobian = max([_jacobian_bounds(case)[role] for role in own if role in _jacobian_bounds(case)], default=None)
    bound = bound * (1.0 if jacobian is None else jacobian)
    worst = 0.0
    for u in (*torch.split(case.images(batch=2), 1), torch.ones(1, *case.image_shape).to(case.device, case.dtype)):
        p = torch.randn(
            _parts(case, parameters, u)["operator"].shape, dtype=torch.float64, generator=case.generator
        ).to(u)
        for _ in range(3):
            size, following = _gradient_size(case, parameters, inside, u, p, affine=jacobian is None)
            worst = max(worst, size / float(norms(_probe(terms_of(case), u)) * norms(p)))
            p = following
            if not float(p.norm()) > 0:
                break
    ratio = worst / bound if bound > 0 else (math.inf if worst > 0 else 0.0)
    problem = f"parameter_lipschitz() = {bound:.6g} of the operator is no bound: {worst:.6g} was reached"
    return judged(name, ratio, 1.0 + 10 * case.rounding, "largest gradient found, over the bound", problem)
