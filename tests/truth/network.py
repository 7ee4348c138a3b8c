"""The truth about input-convex networks: layers as dense matrices, derivatives through products of Jacobians."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from truth.draw import DOUBLE
from truth.matrices import Dense

import learnreg as lr
from learnreg.linear.norms import dense_matrix

__all__ = ["DenseNetwork"]


class DenseNetwork(Dense):
    """E(x) = ½<x, Mx> - <q, x> + <c, z_L> with u_{l+1} = U_l z_l + K_l x + b_{l+1}, z = (u + sqrt(u² + v²) - v)/2."""

    def __init__(self, problem: lr.LowerLevelProblem, b: Tensor) -> None:
        super().__init__(problem, b)
        potential = problem.saddle_terms(DOUBLE).potential.detached()
        layers, n = potential.biases.shape
        places = (n, *self.range_shape[1:])
        size = self.K.shape[0] // layers
        self.W = self.K.split(size)
        column = torch.ones(self.range_shape, dtype=DOUBLE)
        self.v = (column * self.smoothing).flatten().split(size)
        self.c = (torch.ones(places, dtype=DOUBLE) * self.weight).flatten()
        self.b_l = [(torch.ones(places, dtype=DOUBLE) * b[:, None, None]).flatten() for b in potential.biases]
        self.U = [
            dense_matrix(lambda z, U=U: F.conv2d(z, U, padding=U.shape[-1] // 2), places) for U in potential.mixing
        ]

    def _forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """u and sqrt(u² + v²) of each layer."""
        us, roots = [], []
        z: Tensor | None = None
        for l, (W, b, v) in enumerate(zip(self.W, self.b_l, self.v, strict=True)):
            u = x @ W.T + b
            if z is not None:
                u = u + z @ self.U[l - 1].T
            root = (u * u + v * v).sqrt()
            z = (u + root - v) / 2
            us, roots = [*us, u], [*roots, root]
        return us, roots

    def _weights(self, us: list[Tensor], roots: list[Tensor]) -> list[Tensor]:
        """q of each layer."""
        q = [self.c.expand_as(us[-1])]
        for U, u, root in zip(reversed(self.U), reversed(us), reversed(roots), strict=False):
            q.insert(0, (q[0] * (1 + u / root) / 2) @ U)
        return q

    def value(self, x: Tensor) -> Tensor:
        us, roots = self._forward(x)
        z = (us[-1] + roots[-1] - self.v[-1]) / 2
        return 0.5 * (self.quadratic(x) * x).sum(1) - (self.q * x).sum(1) + z @ self.c

    def gradient(self, x: Tensor) -> Tensor:
        us, roots = self._forward(x)
        slope = self.quadratic(x) - self.q
        for W, u, root, q in zip(self.W, us, roots, self._weights(us, roots), strict=True):
            slope = slope + (q * (1 + u / root) / 2) @ W
        return slope

    def hessian(self, x: Tensor) -> Tensor:
        us, roots = self._forward(x)
        H, J = self.M.expand(x.shape[0], -1, -1), self.W[0].expand(x.shape[0], -1, -1)
        for l, (u, root, q) in enumerate(zip(us, roots, self._weights(us, roots), strict=True)):
            bend = q * self.v[l] ** 2 / (2 * root**3)
            H = H + J.transpose(1, 2) @ (bend[:, :, None] * J)
            if l < len(self.U):
                J = self.U[l] @ (((1 + u / root) / 2)[:, :, None] * J) + self.W[l + 1]
        return H

    def apply_hessian(self, x: Tensor, v: Tensor) -> Tensor:
        us, roots = self._forward(x)
        weights, tangents = self._weights(us, roots), [v @ self.W[0].T]
        for l, U in enumerate(self.U):
            dz = (1 + us[l] / roots[l]) / 2 * tangents[-1]
            tangents.append(dz @ U.T + v @ self.W[l + 1].T)
        result, back = self.quadratic(v), torch.zeros_like(tangents[-1])
        for l in range(len(us) - 1, -1, -1):
            bent = weights[l] * self.v[l] ** 2 / (2 * roots[l] ** 3) * tangents[l] + (1 + us[l] / roots[l]) / 2 * back
            result = result + bent @ self.W[l]
            back = bent @ self.U[l - 1] if l else back
        return result

    def energy_rounding(self, X: Tensor) -> float:
        """What autograd loses of s' = (1 + u/sqrt(u² + v²))/2, at most eps, times the weights q."""
        weight, total = self.c, self.c.norm()
        for U in reversed(self.U):
            weight = weight @ U
            total = total + weight.norm()
        lipschitz = self.problem.saddle_terms(DOUBLE).operator.parameter_lipschitz() or 0.0
        size = (X @ self.K.T).norm(dim=1) + lipschitz * X.norm(dim=1)
        return float(4.0 * torch.finfo(DOUBLE).eps * total * size.sum())
