"""Regularizers that break one property each, and the name of the property that has to be blamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from registry import SHAPE, rand
from support.wrong_operators import Custom, dense, matrix
from torch import Tensor, nn

import learnreg as lr
from learnreg.lower_level.saddle_terms import ParameterRole, SaddleTerms
from learnreg.operators import Blur
from learnreg.regularizers import AnalysisOperator, FieldsOfExperts, TotalVariation

Value = Callable[[Tensor, Tensor], Tensor]


class Valued(TotalVariation):
    """Total variation whose value is changed by a function of the image and the true value."""

    def __init__(self, change: Value) -> None:
        super().__init__(0.2, 0.05)
        self.double()
        self._change = change

    def value(self, x: Tensor) -> Tensor:
        return self._change(x, super().value(x))


class Roles(TotalVariation):
    """Total variation that declares roles."""

    def __init__(self, roles: dict[str, ParameterRole]) -> None:
        super().__init__(0.2, 0.05)
        self.double()
        self._roles = roles

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return self._roles


class Projecting(TotalVariation):
    """Clamps its parameter whenever it is evaluated."""

    def value(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.log_weight.clamp_(max=-2.0)
        return super().value(x)


class Squared(Blur):
    """A blur with the squares of its parameters as the kernel: not affine in them."""

    def parameter_lipschitz(self) -> float | None:
        return None

    @property
    def _filters(self) -> Tensor:
        return super()._filters ** 2


class Flat(FieldsOfExperts):
    """A Field of Experts whose operator declares too small a Lipschitz constant."""

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        terms = super().saddle_terms(image_shape)
        terms.operator.parameter_lipschitz = lambda: 0.1  # type: ignore[method-assign]
        return terms


class Detached(TotalVariation):
    """Total variation with a weight that autograd does not see."""

    def value(self, x: Tensor) -> Tensor:
        weight = self.log_weight.exp()
        return super().value(x) / weight * weight.detach()


class WrongGrad(lr.PseudoHuber):
    def grad(self, t: Tensor) -> Tensor:
        return 1.001 * super().grad(t)


class WrongProx(lr.LogCosh):
    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        return v / (1.0 + step * self.curvature_limit)


class WrongBounds(lr.LogCosh):
    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        return self.second(t), self.second(t)


class WrongLimit(lr.PseudoHuber):
    @property
    def curvature_limit(self) -> Tensor | float:
        return 0.5 * self.weight / self.smoothing


class WrongThird(lr.PseudoHuber):
    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return 0.1 * super().third_bound(t, radius)


def analysed(potential: lr.PseudoHuber | lr.LogCosh, operator: object = None) -> AnalysisOperator:
    operator = Blur(nn.Parameter(rand(3, 3)), SHAPE) if operator is None else operator
    return AnalysisOperator(operator, potential).double()  # type: ignore[arg-type]


def learned(kind: type[Blur]) -> AnalysisOperator:
    return analysed(lr.PseudoHuber(0.2), kind(nn.Parameter(rand(3, 3)), SHAPE))


@dataclass(frozen=True)
class Wrong:
    """A regularizer, the property that fails, and words the message must hold."""

    regularizer: Callable[[], object]
    blamed: str
    words: str = ""


_noise = torch.Generator().manual_seed(0)

WRONG: dict[str, Wrong] = {
    "no-regularizer": Wrong(lambda: nn.Linear(2, 2), "interface", "no value, saddle_terms"),
    "a-class": Wrong(lambda: TotalVariation, "interface", "not an instance"),
    "sums-the-batch": Wrong(lambda: Valued(lambda x, R: R.sum()), "shape", "one per sample"),
    "single-precision": Wrong(lambda: Valued(lambda x, R: R.float().to(x)), "dtype", "float32"),
    "single-dtype": Wrong(lambda: Valued(lambda x, R: R.float()), "dtype", ".to(x.dtype)"),
    "nan-at-zero": Wrong(lambda: Valued(lambda x, R: R + x.square().flatten(1).sum(1).sqrt()), "finite", "0/0"),
    "infinite": Wrong(lambda: Valued(lambda x, R: R + x.flatten(1).sum(1).mul(100).exp()), "finite"),
    "in-place": Wrong(lambda: Valued(lambda x, R: R + 0 * x.detach().mul_(1.1).sum()), "purity", "in place"),
    "projects": Wrong(lambda: Projecting(0.5).double(), "purity", "log_weight"),
    "random": Wrong(lambda: Valued(lambda x, R: R * (1 + torch.rand((), generator=_noise))), "determinism"),
    "other-without-autograd": Wrong(
        lambda: Valued(lambda x, R: R * (1.0 + 0.01 * torch.is_grad_enabled())), "determinism", "no_grad"
    ),
    "couples-samples": Wrong(lambda: Valued(lambda x, R: R + (x - x.mean(0)).square().flatten(1).sum(1)), "batch"),
    "detached": Wrong(lambda: Valued(lambda x, R: R + x.detach().square().flatten(1).sum(1)), "gradient", "detach"),
    "gradient-of-its-own": Wrong(lambda: Valued(lambda x, R: 2 * R.detach() - R), "gradient"),
    "concave": Wrong(lambda: Valued(lambda x, R: -R), "convexity", "not convex"),
    "a-little-concave": Wrong(
        lambda: Valued(lambda x, R: R - 0.05 * x[:, 0, 2, 3].square() + x.square().flatten(1).sum(1) * 0.01),
        "convexity",
    ),
    "one-bump": Wrong(lambda: Valued(lambda x, R: R + 0.5 * (3 * x).cos().flatten(1).sum(1)), "convexity"),
    "falls": Wrong(lambda: Valued(lambda x, R: R + x.flatten(1).sum(1)), "bounded below", "falls without end"),
    "other-saddle-form": Wrong(lambda: Valued(lambda x, R: 1.01 * R), "saddle_terms", "solvers minimise"),
    "operator-with-wrong-adjoint": Wrong(
        lambda: analysed(lr.PseudoHuber(0.2), dense(matrix(domain=SHAPE), 1.01 * matrix(domain=SHAPE), SHAPE)),
        "analysis operator",
        "off by a factor 1.01",
    ),
    "operator-not-linear": Wrong(
        lambda: analysed(lr.PseudoHuber(0.2), Custom(lambda x: x + 0.1, torch.clone, SHAPE, SHAPE)),
        "analysis operator",
        "'linearity'",
    ),
    "wrong-grad": Wrong(lambda: analysed(WrongGrad(0.2)), "potential", "WrongGrad.grad"),
    "wrong-prox": Wrong(lambda: analysed(WrongProx(0.2)), "potential", "WrongProx.prox"),
    "wrong-intervals": Wrong(lambda: analysed(WrongBounds(0.2)), "potential", "curvature_bounds"),
    "wrong-limit": Wrong(lambda: analysed(WrongLimit(0.2)), "potential"),
    "wrong-third-derivative": Wrong(lambda: analysed(WrongThird(0.2)), "potential", "third_bound"),
    "detached-parameter": Wrong(lambda: Detached(0.2, 0.05).double(), "parameter gradients", "log_weight"),
    "unknown-parameter": Wrong(lambda: Roles({"log_weigth": "log_weight"}), "parameter_roles", "no parameter"),
    "unknown-role": Wrong(lambda: Roles({"log_weight": "weight"}), "parameter_roles", "unknown"),
    "wrong-role": Wrong(lambda: Roles({"log_weight": "log_smoothing"}), "parameter_roles", "as with 'log_weight'"),
    "wrong-role-operator": Wrong(
        lambda: Roles({"log_weight": "operator"}),
        "parameter_roles",
        "changes the potential: f' moves",
    ),
    "not-affine": Wrong(lambda: learned(Squared), "parameter_roles", "not affine"),
    "lipschitz-too-small": Wrong(lambda: Flat(3, 3).double(), "parameter_lipschitz", "no bound"),
}
