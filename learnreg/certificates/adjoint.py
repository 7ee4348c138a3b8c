"""Lemma 3: how far X is from the adjoint state at the exact solution. Norms per sample, (batch,). *Rigorous bounds.*

From H^ (X - X^) = rho + (∇ell(x^) - ∇ell(x)) + K^T Gamma K X with H^ = H(x^), rho = H(x) X + ∇ell(x), |Gamma| <= Delta.
``residual`` is ‖rho‖ + ‖∇ell(x^) - ∇ell(x)‖ throughout.
"""

from __future__ import annotations

import math

from torch import Tensor

from learnreg.certificates.resolvent import Perturbation

__all__ = ["adjoint_bound", "sharp_adjoint_bound", "sharp_energy_bound"]


def adjoint_bound(residual: Tensor, change_norm: Tensor, operator_norm: float, mu: float) -> Tensor:
    """‖X - X^‖ <= (residual + ‖K‖ ‖Delta K X‖) / mu, by norms alone."""
    return (residual + operator_norm * change_norm) / mu


def sharp_adjoint_bound(residual: Tensor, bent: Perturbation) -> Tensor:
    """‖X - X^‖ <= residual/mu + ‖H^^-1 K^T Gamma K X‖."""
    return residual / bent.mu + bent.push()


def sharp_energy_bound(residual: Tensor, bent: Perturbation) -> Tensor:
    """‖√D^ K (X - X^)‖ <= residual/(2√mu) + ‖√D^ K H^^-1 K^T Gamma K X‖, D^ = f''(K x^)."""
    return residual / (2.0 * math.sqrt(bent.mu)) + bent.energy_push()
