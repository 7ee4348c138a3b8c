"""Random problems as users treat them: optimizers without projections, parametrizations, shared parameters, changes in
place between calls, grad modes, coupled losses, other units, operators of their own.

Every result is held against the dense truth of the problem as it is when the result is asked for. A refusal
(``LearnregError``) counts, a false bound that calls itself rigorous is a violation.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from truth.dense import Truth, distance, truth_of
from truth.draw import DOUBLE, Draw, Ranges
from truth.hunt import Summary, draw_tolerance
from truth.problems import Case, draw_case

import learnreg as lr
from learnreg.linear.operator import LinearOperator
from learnreg.operators import from_callables

__all__ = ["TREATMENTS", "RoughSummary", "hunt_rough_use"]

_RANGES = Ranges(
    (1e-3, 10.0),
    (1e-2, 10.0),
    (1e-2, 10.0),
    constrained=0.15,
    weighted=0.4,
    sides=(3, 5),
    regularizers=("FieldsOfExperts", "TotalVariation", "AnalysisOperator", "MultivariateExperts", "RidgeRegularizer"),
)
_CHANCE = 0.25


@dataclass
class RoughSummary(Summary):
    """``treatments``: how often each was applied, was refused, and led to a certified gradient."""

    treatments: dict[str, Counter[str]] = field(default_factory=dict)

    def note(self, names: list[str], outcome: str) -> None:
        for name in names:
            self.treatments.setdefault(name, Counter())[outcome] += 1

    def report(self) -> dict[str, object]:
        return super().report() | {"treatments": {name: dict(count) for name, count in self.treatments.items()}}


def _parameters(problem: lr.LowerLevelProblem) -> list[nn.Parameter]:
    return list(problem.learnable().values())


def optimizer_steps(draw: Draw, case: Case) -> bool:
    """Steps of torch's optimizers, whose directions know no sign constraint."""
    parameters = _parameters(case.problem)
    if not parameters:
        return False
    kind: Any = draw.choice(torch.optim.SGD, torch.optim.Adam, torch.optim.Rprop)
    optimizer = kind(parameters, draw.log_uniform(1e-3, 1.0))
    for _ in range(draw.integer(1, 3)):
        for p in parameters:
            p.grad = draw.normal(*p.shape).to(p.dtype)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return True


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, raw: Tensor) -> Tensor:
        return self.factor * raw

    def right_inverse(self, value: Tensor) -> Tensor:
        return value / self.factor


class _Exponential(nn.Module):
    def forward(self, raw: Tensor) -> Tensor:
        return raw.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.abs().clamp_min(1e-3).log()


def parametrization(draw: Draw, case: Case) -> bool:
    """torch's parametrizations of any parameter, wherever it stands."""
    places = [
        (module, name)
        for part in (case.problem.regularizer, case.problem.operator, case.problem.data_term)
        for module in part.modules()
        for name, p in module.named_parameters(recurse=False)
        if p.requires_grad
    ]
    if not places:
        return False
    module, name = places[draw.integer(0, len(places) - 1)]
    how = _Times(draw.log_uniform(1e-3, 1e6)) if draw.chance(0.6) else _Exponential()
    parametrize.register_parametrization(module, name, how)
    return True


def shared_parameters(draw: Draw, case: Case) -> bool:
    """One parameter in the place of another of the same shape."""
    places = [
        (module, name, p)
        for part in (case.problem.regularizer, case.problem.operator, case.problem.data_term)
        for module in part.modules()
        for name, p in module.named_parameters(recurse=False)
        if p.requires_grad
    ]
    pairs = [(a, b) for a in places for b in places if a[2] is not b[2] and a[2].shape == b[2].shape]
    if not pairs:
        return False
    (_, _, kept), (module, name, _) = pairs[draw.integer(0, len(pairs) - 1)]
    setattr(module, name, kept)
    return True


def change_in_place(draw: Draw, case: Case) -> bool:
    """Numbers changed behind autograd's back after everything about the problem was found once."""
    lr.hypergradient(case.problem, case.b, case.loss, tolerance=1.0, max_steps=3)
    tensors = [
        t
        for part in (case.problem.regularizer, case.problem.operator, case.problem.data_term)
        for t in (*part.parameters(), *part.buffers())
        if t.is_floating_point()
    ]
    if not tensors:
        return False
    t, factor = tensors[draw.integer(0, len(tensors) - 1)], draw.log_uniform(0.1, 10.0)
    match draw.integer(0, 2):
        case 0:
            t.data.mul_(factor)
        case 1:
            t.data = t.data * factor
        case _:
            t.detach().numpy()[...] *= factor
    return True


def other_units(draw: Draw, case: Case) -> bool:
    unit = draw.log_uniform(1e-6, 1e6)
    case.b = case.b * unit
    return True


class _Wrong:
    """A user's operator: right, or wrong in one way."""

    def __init__(self, inner: LinearOperator, kind: str, size: float) -> None:
        self.inner, self.kind, self.size, self.factor = inner, kind, size, 1.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.factor * self.inner(x)
        match self.kind:
            case "offset":
                return y + self.size
            case "abs":
                return y.abs()
            case "coupled":
                return y + self.size * y.mean(0, keepdim=True)
            case "clip":
                return y.clamp(-self.size, self.size)
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        x = self.factor * self.inner.adjoint(y)
        match self.kind:
            case "scaled adjoint":
                return x * (1.0 + self.size)
            case "rolled adjoint":
                return x.roll(1, -1)
        return x


def own_operator(draw: Draw, case: Case) -> bool:
    """Callables in the place of the forward operator, changed after their examination or wrong from the start."""
    inner = case.problem.operator
    if any(True for _ in inner.parameters()):
        return False
    kind = str(draw.choice("right", "changed", "offset", "abs", "coupled", "clip", "scaled adjoint", "rolled adjoint"))
    own = _Wrong(copy.deepcopy(inner), kind, draw.log_uniform(1e-5, 1.0))
    ridge = case.problem.ridge
    operator = from_callables(own.forward, own.adjoint, inner.domain_shape, inner.range_shape)
    case.problem = lr.LowerLevelProblem(
        operator,
        case.problem.regularizer,
        ridge=ridge if isinstance(ridge, nn.Parameter) or ridge > 0 else 0.1,
        data_term=case.problem.data_term,
        constraint=case.problem.constraint,
    )
    case.label += f"/{kind}"
    if kind == "changed":
        lr.hypergradient(case.problem, case.b, case.loss, tolerance=1.0, max_steps=3)
        own.factor = draw.log_uniform(0.1, 10.0)
    return True


def strange_loss(draw: Draw, case: Case) -> bool:
    """Losses that couple samples where nobody looks, compute in float32, or declare too small a constant."""
    x = case.problem.operator.adjoint(case.b).detach()
    target, size = draw.normal(*x.shape).to(x.dtype) * x.norm() / x.numel() ** 0.5, float(x.norm()) + 1e-300
    kind = str(draw.choice("hinge of all", "float32", "too small", "weakly coupled"))
    count = x.shape[0]

    def hinge(z: Tensor) -> Tensor:
        over = (z.sum() / z.numel() ** 0.5 - draw_threshold).clamp_min(0.0)
        return 0.5 * over.square().expand(count)

    draw_threshold = draw.uniform(-2.0, 2.0) * size
    match kind:
        case "hinge of all":
            case.loss = lr.UpperLoss(hinge, 1.0)
        case "float32":
            case.loss = lr.UpperLoss(lambda z: 0.5 * (z - target).float().square().flatten(1).sum(1), 1.0)
        case "too small":
            case.loss = lr.UpperLoss(lambda z: 5.0 * (z - target).square().flatten(1).sum(1), 1.0)
        case _:
            share = draw.log_uniform(1e-8, 1e-1)
            own = lambda z: 0.5 * (z - target).square().flatten(1).sum(1)  # noqa: E731
            mean = lambda z: 0.5 * (z - target).square().sum() / count  # noqa: E731
            constant = 1.0 + share
            loss = lambda z: own(z) + share * mean(z)  # noqa: E731
            case.loss = lr.UpperLoss(loss, constant, independent=draw.chance(0.5))
    case.label += f"/{kind}"
    return True


TREATMENTS: dict[str, Callable[[Draw, Case], bool]] = {
    "other units": other_units,
    "own operator": own_operator,
    "strange loss": strange_loss,
    "shared parameters": shared_parameters,
    "parametrization": parametrization,
    "optimizer steps": optimizer_steps,
    "change in place": change_in_place,
}
MODES: dict[str, Callable[[], Any]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


def hunt_rough_use(problems: int, generator: torch.Generator) -> RoughSummary:
    """So many random problems, each treated in none to several ways."""
    summary = RoughSummary()
    for _ in range(problems):
        seed = int(torch.randint(2**31, (), generator=generator))
        draw = Draw(torch.Generator().manual_seed(seed), _RANGES)
        case = draw_case(draw)
        case.label += f"/case={seed}"
        summary.problems += 1
        names: list[str] = []
        try:
            for name, treat in TREATMENTS.items():
                if draw.chance(_CHANCE):
                    names.append(name)
                    if not treat(draw, case):
                        names.pop()
            _judge(case, draw, names, summary)
        except lr.LearnregError as error:
            summary.note(names, f"refused ({type(error).__name__})")
    return summary


def _judge(case: Case, draw: Draw, names: list[str], summary: RoughSummary) -> None:
    problem, b, loss = case.problem, case.b, case.loss
    mode = str(draw.choice(*MODES))
    method: Any = draw.choice(lr.Piggyback(), lr.Implicit(), lr.Unrolled(draw.integer(1, 30)))
    tolerance, max_steps = draw_tolerance(draw), draw.choice(1, 10, None, None)
    with MODES[mode]():
        result = lr.hypergradient(problem, b, loss, method, tolerance, max_steps=max_steps)
        solution = lr.solve(problem, b, tolerance * float(b.square().mean().sqrt()), max_steps=max_steps)
    label = f"{case.label}/{'+'.join(names)}/{mode}/{method!r}/{tolerance:.2g}/{max_steps}"
    summary.note(names, "certified" if result.certified else "estimated")
    summary.certified += result.certified
    if not (result.certified or solution.certified):
        return
    truth = truth_of(problem, b, loss)
    if not truth.usable:
        summary.unusable_truth += 1
        return
    root = truth.x.shape[1] ** 0.5
    if solution.certified:
        errors = (solution.x.to(DOUBLE).flatten(1) - truth.x).norm(dim=1) / root
        for error, bound, slack in zip(errors, solution.error_bound, truth.x_slack / root, strict=True):
            summary.compare("solve", float(error), float(bound), float(slack), label)
    if not result.certified:
        return
    _compare_gradient("hypergradient", result.gradient, result.error_bound, truth, summary, label)
    low, high = result.loss_interval
    rounding = 1e-12 * abs(truth.loss)
    summary.compare("loss interval", abs(truth.loss - 0.5 * (low + high)), 0.5 * (high - low), rounding, label)
    X = None if draw.chance(0.5) else truth.X.reshape(result.x.shape)
    noise = draw.log_uniform(1e-8, 1.0) * draw.normal(*truth.x.shape) * truth.x.square().mean().sqrt()
    with MODES[mode]():
        cert = lr.certify(problem, b, loss, (truth.x + noise).reshape(result.x.shape), X)
    if cert.certified:
        _compare_gradient("certify", cert.gradient, cert.gradient_error_bound, truth, summary, label)
        _compare_gradient("certify", cert.corrected_gradient, cert.corrected_error_bound, truth, summary, label)


def _compare_gradient(
    what: str, gradient: dict[str, Tensor], bound: float, truth: Truth, summary: Summary, label: str
) -> None:
    if set(gradient) != set(truth.gradient):
        summary.violations.append(
            f"{what}: gradients of {sorted(gradient)}, expected {sorted(truth.gradient)} [{label}]"
        )
        return
    summary.compare(what, distance(gradient, truth.gradient), bound, truth.gradient_slack, label)
