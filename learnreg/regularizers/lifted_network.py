"""The lifted form of input-convex networks: features as latent variables of the lower level.

    R(x) = min over z >= 0 of  <c, z_L> + ½ delta_z ‖z‖²
                               + sum_l ‖(U_{l-1} z_{l-1} + W_{l-1} x + b_l - z_l)_+‖² / (2 delta_y)

(U_0 = 0). As both deltas vanish, the constraints z_l >= max(U z + W x + b, 0) hold, with equality at an optimum since
U, c >= 0: R tends to the ReLU network. It lies between R_0 - ½ delta_y ‖y‖², y_L = c, y_l = U_l^T y_{l+1}, and R_0 + ½
delta_z ‖z‖² with the network's own features.

Source: Ehrhardt, Mukherjee and Wong, "A primal-dual algorithm for image reconstruction with input-convex neural network
regularizers", arXiv 2410.12441.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.lifted import LiftedOperator
from learnreg.convolutions.network_layers import Network
from learnreg.errors import ConfigError
from learnreg.linear.arguments import model_scale, shown
from learnreg.linear.shapes import check_one_channel
from learnreg.lower_level.latent import Latent
from learnreg.lower_level.saddle_terms import ParameterRole, SaddleTerms
from learnreg.potentials.squared_hinge import SquaredHinge
from learnreg.regularizers.lifted_features import InnerProblem, reduced_value

__all__ = ["LIFTED_ROLES", "check_delta", "lifted_jacobian_bounds", "lifted_terms", "lifted_value"]

LIFTED_ROLES: dict[str, ParameterRole] = {
    "filters": "operator",
    "log_mixing": "operator",
    "biases": "potential",
    "log_weights": "latent_cost",
}


def check_delta(delta: object) -> tuple[float, float]:
    """(delta_y, delta_z), or ConfigError unless they are positive, and of a size to compute with."""
    call = f"InputConvexNetwork(delta={shown(delta)})"
    if not isinstance(delta, (tuple, list)) or len(delta) != 2:
        raise ConfigError(f"{call}: expected two positive numbers, (delta_y, delta_z).")
    try:
        return model_scale(delta[0], "delta_y"), model_scale(delta[1], "delta_z")
    except ConfigError as error:
        raise ConfigError(f"{call}: expected two positive numbers, (delta_y, delta_z). {error}") from error


def lifted_terms(network: Network, image_shape: tuple[int, ...], delta: tuple[float, float]) -> SaddleTerms:
    """K and f of the lifted problem, with the features as latent variables; differentiable in the network's numbers."""
    check_one_channel(image_shape, "InputConvexNetwork")
    sides, count = (1, image_shape[1], image_shape[2]), network.layers * network.features
    before = network.weights.new_zeros(count - network.features)
    shift = network.biases.reshape(-1, 1, 1)

    def idle(t: Tensor, radius: Tensor) -> Tensor:
        """Where a feature is positive, so is its dual, since U and c are not negative: a residual that stays below 0
        keeps it at 0."""
        return (t + shift.detach().to(t) + radius) * (1.0 + 1e-12) < 0

    unscaled = LiftedOperator(network.filters, network.mixing, sides)
    latent = Latent(
        image_channels=1,
        channels=count,
        cost=torch.cat([before, network.weights])[:, None, None],
        modulus=delta[1],
        nonnegative=True,
        operator=lambda scale: LiftedOperator(network.filters, network.mixing, sides, scale),
        solve=lambda x: _inner_problem(network, x, delta).solve(),
        start=lambda x: _inner_problem(network, x, delta).first_features(),
        balance=unscaled.balance,
        idle=idle,
    )
    return SaddleTerms(unscaled, SquaredHinge(delta[0], shift=shift), latent)


def lifted_value(network: Network, x: Tensor, delta: tuple[float, float]) -> Tensor:
    """R(x), (batch,), solved to rounding; twice differentiable where no active set changes."""
    responses = _responses(network, x)
    return reduced_value(responses, network.mixing, network.weights, *delta)


def lifted_jacobian_bounds(network: Network) -> dict[ParameterRole, float]:
    """Of U and c in their logarithms. *Rigorous bounds.*"""
    largest = float(network.mixing.detach().max()) if network.layers > 1 else 0.0
    return {"operator": max(1.0, largest), "latent_cost": float(network.weights.detach().max())}


def _responses(network: Network, x: Tensor) -> Tensor:
    bank = FilterBank(network.filters.flatten(0, 1), (1, x.shape[2], x.shape[3]), "zero", zero_mean=True)
    responses: Tensor = bank(x) + network.biases.reshape(-1, 1, 1).to(x)
    return responses


def _inner_problem(network: Network, x: Tensor, delta: tuple[float, float]) -> InnerProblem:
    with torch.no_grad():
        mixing, weights = network.mixing.to(x.dtype), network.weights.to(x.dtype)
        return InnerProblem(_responses(network, x), mixing, weights, *delta)
