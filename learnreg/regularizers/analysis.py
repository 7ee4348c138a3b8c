"""Any linear operator followed by a potential."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learnreg.errors import ShapeError
from learnreg.linear.arguments import check_type
from learnreg.linear.grad_mode import full_precision
from learnreg.linear.operator import LinearOperator
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import ParameterRole, Pictures, SaddleTerms
from learnreg.potentials.base import Potential
from learnreg.potentials.proximal import Grouped
from learnreg.regularizers.image_kind import WIDTH, WIDTHS
from learnreg.regularizers.raw_parameters import positive_log

__all__ = ["AnalysisOperator"]


class AnalysisOperator(Regularizer):
    """R(x) = sum potential(operator(x)): of images of any shape, colour and volumes, too.

    Parameters
    ----------
    operator: any LinearOperator; those of its parameters that require a gradient are learned. It must be affine in
        them and declare ``parameter_lipschitz`` for hypergradients to be certified.
    potential: its ``numbers``, weight and smoothing, are learned through the raw parameters ``log_weight`` and
        ``log_smoothing`` (numbers, or tensors that broadcast against the operator's range); a potential without a
        smoothing has no ``log_smoothing``.

    Raises
    ------
    ConfigError: an operator or a potential of another kind.
    ShapeError: a potential whose parameters do not fit the range of the operator.

    Examples
    --------
    >>> R = lr.regularizers.AnalysisOperator(lr.operators.Identity((1, 8, 8)), lr.PseudoHuber(0.1))
    >>> R.value(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    log_weight: nn.Parameter
    log_smoothing: nn.Parameter

    summary = "any linear operator and potential"

    def __init__(self, operator: LinearOperator, potential: Potential) -> None:
        super().__init__()
        check_type(
            operator,
            LinearOperator,
            "AnalysisOperator(operator)",
            "a LinearOperator: of a function learnreg.operators.from_callables makes one; for a network subclass "
            "lr.Regularizer and define value(x)",
        )
        check_type(
            potential,
            Potential,
            "AnalysisOperator(potential)",
            "a potential such as lr.PseudoHuber(smoothing=1e-2), lr.LogCosh or lr.Huber; for another smooth function "
            "subclass lr.Regularizer and define value(x)",
        )
        if isinstance(potential, Grouped):
            for name, value in potential.numbers().items():
                _check_one_per_group(name, value, operator.range_shape)
        self.analysis, self._potential = operator, potential
        for name, value in potential.numbers().items():
            self.register_parameter(f"log_{name}", positive_log(value, f"potential {name}"))

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        if image_shape != self.analysis.domain_shape:
            raise ShapeError(
                f"AnalysisOperator: got images of shape {image_shape}, its operator takes {self.analysis.domain_shape}."
            )
        return SaddleTerms(self.analysis, self._potential.with_numbers(**self._numbers()))

    def _numbers(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"log_{name}").double().exp() for name in self._potential.numbers()}

    @full_precision
    def value(self, x: Tensor) -> Tensor:
        self.analysis.check_domain(x)
        return super().value(x)

    @torch.no_grad()
    def pictures(self) -> Pictures:
        """The potential of a response, and of each channel of them, where these have numbers of their own."""
        potential, shape = self._potential.with_numbers(**self._numbers()), tuple(self.analysis.domain_shape)
        rows = [value for value in potential.numbers().values() if isinstance(value, Tensor) and value.numel() > 1]
        if any(value.numel() != len(value) or value.dim() != 3 for value in rows):
            return Pictures(image_shape=shape)
        widths = potential.numbers().get("smoothing", WIDTH)
        reach = WIDTHS * float(widths.median() if isinstance(widths, Tensor) else widths)
        return Pictures(image_shape=shape).along(
            potential, torch.ones(max(map(len, rows), default=1), dtype=torch.float64), reach
        )

    def parameter_roles(self) -> dict[str, ParameterRole]:
        roles: dict[str, ParameterRole] = {f"log_{name}": f"log_{name}" for name in self._potential.numbers()}
        return roles | {f"analysis.{name}": "operator" for name, _ in self.analysis.named_parameters()}


def _check_one_per_group(name: str, value: float | Tensor, range_shape: tuple[int, ...]) -> None:
    """ShapeError if the channels of one group would get numbers of their own: the potential is a function of the
    group's length."""
    if isinstance(value, Tensor) and value.dim() == len(range_shape) and value.shape[0] > 1:
        raise ShapeError(
            f"AnalysisOperator: the potential's {name} has shape {tuple(value.shape)}, one number for each channel of "
            f"{range_shape}, but the channels form groups; use shape {(1, *value.shape[1:])} or a number."
        )
