"""Data terms: convex functions of A x and the measurements b; here those that are squares of the residual A x - b.

The energy is ½<x,Mx> - <q,x> + f(Kx). A square stays in M and q; another function ``joins`` f, with A as one more block
of K.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, DataError, ShapeError
from learnreg.linear.arguments import given_tensor, real_number
from learnreg.linear.operator import LinearOperator
from learnreg.linear.parameter_groups import Density, shape_of
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.constraints import Box
from learnreg.lower_level.quadratic import Quadratic
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.potentials.function import Proximal
from learnreg.result import brief

__all__ = ["DUALISED", "DataTerm", "LeastSquares", "TransmissionLeastSquares", "WeightedLeastSquares"]

DUALISED = "data_term."
"""What stands before the names of the parameter groups of a dualised data term, and of its operator."""

Range = tuple[Tensor, Tensor]
"""What the entries of A x are between on the constraint, (*range_shape) each."""


class DataTerm(nn.Module):
    """A convex function D(A x; b), (batch,).

    dualised: it joins the potential, and the parameters of A are those of K; else it is a square, within M.
    """

    dualised = False

    # ---- the problem -------------------------------------------------------------------------------------------------

    def check_range(self, range_shape: tuple[int, ...]) -> None:
        """Raise ShapeError unless its numbers broadcast against measurements of this shape."""

    def check_constraint(self, constraint: Box | None) -> None:
        """Raise ConfigError unless the function is convex, and has a minimum, on the constraint."""

    def check_operator(self, operator: LinearOperator) -> None:
        """Raise AssumptionError unless A maps the constraint to where the function is defined."""

    def project_(self) -> None:
        """Project learnable numbers onto their admissible sets; nothing to do without."""

    # ---- at measurements ---------------------------------------------------------------------------------------------

    def at(self, b: Tensor, known: Callable[[], Range | None] = lambda: None) -> DataTerm:
        """The data term for these measurements: itself, where nothing depends on them. known: says the range of A x."""
        return self

    def select(self, index: Tensor | slice) -> DataTerm:
        """What ``at`` returned, for some samples."""
        return self

    def part(self, index: Tensor, b: Tensor) -> DataTerm:
        """The data term of a batch of some of the samples of b."""
        return self

    def energy(self, response: Tensor, b: Tensor) -> Tensor:
        """D(A x; b), (batch,), for the response A x."""
        raise NotImplementedError

    def slope(self, response: Tensor, b: Tensor) -> Tensor:
        """D'(A x; b), in the shape of b, differentiable in b."""
        raise NotImplementedError

    def weights_for(self, p: Tensor) -> Tensor:
        """The weight of each measurement in M = A^T w A, broadcastable against (batch, *range_shape)."""
        raise NotImplementedError

    def weigh(self, p: Tensor) -> Tensor:
        """w p, whose A^T q is."""
        raise NotImplementedError

    def weight_range(self) -> tuple[float, float]:
        """Smallest and largest weight."""
        raise NotImplementedError

    def sensitivity(self) -> float:
        """The largest |∂D'/∂b|: how much measurements move the gradient. *Rigorous bound.*"""
        return self.weight_range()[1]

    def weighted(self, weights: Tensor | float) -> DataTerm:
        """The same function, each measurement times a fixed weight >= 0; ConfigError where it has none."""
        raise NotImplementedError

    def joins(self, terms: SaddleTerms, operator: LinearOperator) -> SaddleTerms:
        """The regularizer's terms with what the data term adds to them, at measurements."""
        return terms

    def start(self, quadratic: Quadratic, rhs: Tensor, b: Tensor) -> Tensor:
        """A guess of the solution without the regularizer."""
        return quadratic.start(rhs, b)

    def parameter_groups(self) -> tuple[Density, ...]:
        """How D' moves with the parameters that are learned, for certificates, of a data term that is not dualised."""
        return ()

    # ---- in model files ----------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """What, besides ``stored_tensors``, rebuilds the data term, as JSON knows it."""
        return {}

    def stored_tensors(self) -> dict[str, Tensor]:
        """The tensors that a model file holds beside the configuration, by name."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DataTerm:
        """The data term again; ConfigError where tensors are missing or superfluous."""
        if tensors:
            raise ConfigError(f"{cls.__name__} has no {', '.join(tensors)}, but the file holds some.")
        return cls(**config)


class LeastSquares(DataTerm, Proximal):
    """½‖p‖² of the residual p = A x - b: the data term of Gaussian noise.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(
    ...     lr.operators.Identity((1, 4, 4)), lr.regularizers.TotalVariation(), data_term=lr.LeastSquares()
    ... )
    >>> problem.energy(torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)).detach()
    tensor([8.])
    """

    def at(self, b: Tensor, known: Callable[[], Range | None] = lambda: None) -> LeastSquares:
        return self

    def weights_for(self, p: Tensor) -> Tensor:
        return torch.ones((), dtype=p.dtype, device=p.device)

    def weigh(self, p: Tensor) -> Tensor:
        """w p; p itself without weights."""
        return p

    def value(self, t: Tensor) -> Tensor:
        return 0.5 * sum_samples(self.weights_for(t) * t * t)

    def grad(self, t: Tensor) -> Tensor:
        return self.weights_for(t) * t

    def hess_vec(self, t: Tensor, v: Tensor) -> Tensor:
        return self.weights_for(v) * v

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        return v / (1.0 + step * self.weights_for(v))

    def prox_jvp(self, t: Tensor, step: Tensor | float, v: Tensor) -> Tensor:
        return v / (1.0 + step * self.weights_for(v))

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        curvature = self.weights_for(t).expand_as(t)
        return curvature, curvature

    def weight_range(self) -> tuple[float, float]:
        return 1.0, 1.0

    def weighted(self, weights: Tensor | float) -> DataTerm:
        own = self.weights_for(torch.zeros(1)).detach()
        return WeightedLeastSquares(own * weights)

    def energy(self, response: Tensor, b: Tensor) -> Tensor:
        own: LeastSquares = self.at(b)
        return own.value(response - b)

    def slope(self, response: Tensor, b: Tensor) -> Tensor:
        own: LeastSquares = self.at(b)
        return own.grad(response - b)


class WeightedLeastSquares(LeastSquares):
    """½ sum_i w_i p_i² of the residual p = A x - b.

    Parameters
    ----------
    weights: tensor or NumPy array that broadcasts against the range of A (without the batch axis), all entries finite
        and >= 0. An nn.Parameter is learnable and appears in hypergradients as ``data_term.weights``. Or (batch,
        *range_shape), fixed: weights of its own for each sample of the one batch that the problem is for.

    Raises
    ------
    ConfigError: weights that are negative, infinite or NaN.

    Examples
    --------
    >>> variances = torch.full((1, 4, 4), 0.01)
    >>> lr.WeightedLeastSquares(1.0 / variances).weights.shape
    torch.Size([1, 4, 4])
    """

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        weights = given_tensor(weights, "WeightedLeastSquares(weights)")
        weights = weights if weights.is_floating_point() else weights.to(torch.get_default_dtype())
        if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
            raise ConfigError("WeightedLeastSquares(weights): expected finite weights >= 0; check the noise variances.")
        if isinstance(weights, nn.Parameter):
            self.weights = weights
        else:
            self.register_buffer("weights", weights)

    def extra_repr(self) -> str:
        return f"weights={brief(self.weights)}"

    def weights_for(self, p: Tensor) -> Tensor:
        return self.weights.to(p.dtype)

    def at(self, b: Tensor, known: Callable[[], Range | None] = lambda: None) -> LeastSquares:
        """With weights of each sample those of the samples, ShapeError where their number differs."""
        if self.weights.dim() < b.dim():
            return self
        if len(self.weights) not in (1, len(b)):
            raise ShapeError(
                f"WeightedLeastSquares: weights for {len(self.weights)} samples, but b has {len(b)}; make a problem "
                "for each batch, or give weights without a batch axis."
            )
        return _PerMeasurement(self.weights.expand(len(b), *self.weights.shape[1:]))

    def part(self, index: Tensor, b: Tensor) -> LeastSquares:
        shared = self.weights.dim() < b.dim() or len(self.weights) == 1
        return self if shared else WeightedLeastSquares(self.weights[index.to(self.weights.device)])

    def check_range(self, range_shape: tuple[int, ...]) -> None:
        shape = tuple(self.weights.shape)
        per_sample = shape[1:] == range_shape
        try:
            fits = per_sample or self.weights.expand(range_shape).shape == range_shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ShapeError(
                f"data_term weights of shape {shape} do not broadcast against the operator's range {range_shape}, and "
                "are no (batch, *range)."
            )
        if per_sample and self.weights.requires_grad:
            raise ShapeError(
                f"data_term weights of shape {shape} have a batch axis, so that they cannot be learned: samples of "
                "other batches would have none. Give a tensor without requires_grad, or one set of weights for all."
            )

    def config(self) -> dict[str, Any]:
        return {"learnable": isinstance(self.weights, nn.Parameter)}

    def stored_tensors(self) -> dict[str, Tensor]:
        return {"weights": self.weights}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> WeightedLeastSquares:
        if set(tensors) != {"weights"}:
            raise ConfigError("WeightedLeastSquares: the file holds no weights.")
        weights = tensors["weights"]
        return cls(nn.Parameter(weights) if config["learnable"] else weights)

    def weigh(self, p: Tensor) -> Tensor:
        return self.weights_for(p) * p

    def weight_range(self) -> tuple[float, float]:
        return float(self.weights.detach().min()), float(self.weights.detach().max())

    def parameter_groups(self) -> tuple[Density, ...]:
        """The weights themselves: f' = w p moves with them by s = p, which has the slope 1."""
        learned = Density("weights", shape_of(self.weights), lambda p: p, lambda p, radius: 0.0, 1.0)
        return (learned,) if self.weights.requires_grad else ()

    @torch.no_grad()
    def project_(self) -> None:
        if isinstance(self.weights, nn.Parameter):
            self.weights.clamp_(min=0.0)


class TransmissionLeastSquares(LeastSquares):
    """½ sum_i w_i(b) (A x - b)_i² for line integrals b of counted photons, each measurement with weights of its own.

    N_i = photons exp(-attenuation b_i) photons were counted; N_i has the variance N_i + electronic², and b_i to first
    order one proportional to (N_i + electronic²)/N_i². w_i is the variance at the line integral ``reference`` over that
    of ray i: regularization weights mean what they mean for rays of that length. Without electronic noise
    w_i = exp(-attenuation (b_i - reference)).

    Parameters
    ----------
    photons: count of a ray that meets nothing. attenuation: line integral without dimension per unit of A x.
    electronic: standard deviation of the electronics' noise in photons. reference: in units of A x.

    Source: Sauer and Bouman, IEEE Trans. Signal Process. 41 (1993); Thibault, Bouman, Sauer and Hsieh, Proc. SPIE 6065
    (2006), for the electronic noise.

    Raises
    ------
    ConfigError: an argument that is out of its range, or of the wrong kind.

    Examples
    --------
    >>> data_term = lr.TransmissionLeastSquares(photons=1e4, attenuation=16.0)
    >>> A = lr.operators.Identity((1, 4, 4))
    >>> problem = lr.LowerLevelProblem(A, lr.regularizers.TotalVariation(), ridge=1e-3, data_term=data_term)
    """

    def __init__(
        self, photons: float, attenuation: float = 1.0, electronic: float = 0.0, reference: float = 0.0
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.photons = real_number(photons, f"{name}(photons)", above=0.0)
        self.attenuation = real_number(attenuation, f"{name}(attenuation)", above=0.0)
        self.electronic = real_number(electronic, f"{name}(electronic)", least=0.0)
        self.reference = real_number(reference, f"{name}(reference)")

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in self.config().items())

    def inverse_variance(self, b: Tensor) -> Tensor:
        """That of -log N for each ray, in the shape of b, differentiable; *estimate*: measured counts stand for
        expected ones."""
        counts = self.photons * torch.exp(-self.attenuation * b)
        return counts / (1.0 + self.electronic**2 / counts)

    def at(self, b: Tensor, known: Callable[[], Range | None] = lambda: None) -> LeastSquares:
        """``WeightedLeastSquares`` with weights (batch, *range_shape). DataError where counts overflow."""
        exact = b.double()
        weights = (self.inverse_variance(exact) / self.inverse_variance(exact.new_tensor(self.reference))).to(b.dtype)
        if b.device.type != "meta" and not bool(torch.isfinite(weights).all()):
            raise DataError(
                f"a ray has the line integral {float(b.min()):.6g}, for which no photons can be counted.",
                hint="Check the sign and the unit of the measurement, and `attenuation`.",
            )
        return _PerMeasurement(weights)

    def config(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("photons", "attenuation", "electronic", "reference")}

    def weights_for(self, p: Tensor) -> Tensor:
        raise ConfigError("TransmissionLeastSquares: the weights depend on the measurement b; ask at(b).")

    def weight_range(self) -> tuple[float, float]:
        """What is known without a measurement."""
        return 0.0, math.inf


class _PerMeasurement(LeastSquares):
    """Weights (batch, *range_shape)."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self._weights = weights

    def select(self, index: Tensor | slice) -> LeastSquares:
        return _PerMeasurement(self._weights[index])

    def weights_for(self, p: Tensor) -> Tensor:
        return self._weights.to(p.dtype)

    def weigh(self, p: Tensor) -> Tensor:
        return self.weights_for(p) * p

    def weight_range(self) -> tuple[float, float]:
        return float(self._weights.detach().min()), float(self._weights.detach().max())
