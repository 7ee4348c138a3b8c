"""What a potential says of the error of its parameters' gradients, where its role is "potential"."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["ParameterBound", "ResponseErrors"]


@dataclass(frozen=True)
class ResponseErrors:
    """How far responses t and duals y = f'(t) are from their exact values, and how far f''(t) moves the fixed vector V
    meanwhile: bounds of ‖t - t^‖, ‖y - y^‖ and ‖(f''(t) - f''(t^)) V‖, (batch,) each."""

    t: Tensor
    y: Tensor
    Y: Tensor


@dataclass(frozen=True)
class ParameterBound:
    """constant + on_V ‖V - V^‖ + on_Y ‖f''(t^) (V - V^)‖ bounds the error of ∂_theta <f'(t), V> over the raw parameters
    of the potential. magnitude: the size of what is summed in the gradient. Per sample, (batch,). *Rigorous bounds.*"""

    constant: Tensor
    on_V: Tensor
    on_Y: Tensor
    magnitude: Tensor
