"""Any linear operator followed by a potential."""

from __future__ import annotations

from torch import Tensor, nn

from learnreg.errors import ShapeError
from learnreg.linear.operator import LinearOperator
from learnreg.lower_level.regularizer import ParameterRole, Regularizer, SaddleTerms, positive_log
from learnreg.potentials.base import Potential

__all__ = ["AnalysisOperator"]


class AnalysisOperator(Regularizer):
    """R(x) = sum potential(operator(x)).

    Parameters
    ----------
    operator: any LinearOperator; those of its parameters that require a gradient are learned. It must be affine in
        them and declare ``parameter_lipschitz`` for hypergradients to be certified.
    potential: its weight and smoothing are learned through the raw parameters ``log_weight`` and ``log_smoothing``
        (numbers, or tensors that broadcast against the operator's range).
    """

    summary = "any linear operator and potential"

    def __init__(self, operator: LinearOperator, potential: Potential) -> None:
        super().__init__()
        if potential.grouped:
            for name, value in (("smoothing", potential.smoothing), ("weight", potential.weight)):
                _check_one_per_group(name, value, operator.range_shape)
        self.analysis, self._potential = operator, potential
        self.log_weight: nn.Parameter = positive_log(potential.weight, "potential weight")
        self.log_smoothing: nn.Parameter = positive_log(potential.smoothing, "potential smoothing")

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        if image_shape != self.analysis.domain_shape:
            raise ShapeError(
                f"AnalysisOperator: got images of shape {image_shape}, its operator takes {self.analysis.domain_shape}."
            )
        potential = self._potential.with_parameters(self.log_weight.double().exp(), self.log_smoothing.double().exp())
        return SaddleTerms(self.analysis, potential)

    def value(self, x: Tensor) -> Tensor:
        self.analysis.check_domain(x)
        return super().value(x)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        roles: dict[str, ParameterRole] = {"log_weight": "log_weight", "log_smoothing": "log_smoothing"}
        return roles | {f"analysis.{name}": "operator" for name, _ in self.analysis.named_parameters()}


def _check_one_per_group(name: str, value: float | Tensor, range_shape: tuple[int, ...]) -> None:
    """ShapeError if the channels of one group would get numbers of their own: the potential is a function of the
    group's length."""
    if isinstance(value, Tensor) and value.dim() == len(range_shape) and value.shape[0] > 1:
        raise ShapeError(
            f"AnalysisOperator: the potential's {name} has shape {tuple(value.shape)}, one number for each channel of "
            f"{range_shape}, but the channels form groups; use shape {(1, *value.shape[1:])} or a number."
        )
