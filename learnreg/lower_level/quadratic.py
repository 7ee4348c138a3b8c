"""The quadratic part of the energy, ½<x,Mx> - <q,x> with M = A^T w A + ridge: what is known of M, and what of the
lower level it solves alone.

``quadratic_of`` makes the one that fits: where M is diagonal, its proximal map and its minimiser are closed forms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from learnreg.errors import AssumptionError
from learnreg.linear.operator import LinearOperator
from learnreg.linear.samples import expand, inner_samples
from learnreg.lower_level.constraints import Box

__all__ = ["DiagonalQuadratic", "Quadratic", "quadratic_of"]


@dataclass(frozen=True)
class Quadratic:
    """M by the forward operator A. weights: w, which broadcast against measurements and may have a batch axis."""

    forward: LinearOperator
    weights: Tensor
    ridge: float

    is_diagonal = False
    """Whether M is known to be diagonal, so that ``minimiser`` exists."""
    is_ridge = False
    """Whether M is the ridge alone, and knows nothing of the data."""

    def __call__(self, x: Tensor) -> Tensor:
        """M x."""
        result = self.forward.adjoint(self.weights * self.forward(x))
        return result + self.ridge * x if self.ridge else result

    def primal_step(self, x: Tensor, pullback: Tensor, rhs: Tensor, step: Tensor) -> Tensor:
        """A step of size ``step`` (a broadcast tensor) from x down ½<x,Mx> - <rhs,x> + <pullback,x>: a proximal one of
        the ridge after an explicit one of all else, Condat (2013)."""
        explicit = self(x) - self.ridge * x - rhs
        return (x - step * (pullback + explicit)) / (1.0 + step * self.ridge)

    def explicit_lipschitz(self) -> float:
        """Bound of the norm of what ``primal_step`` treats explicitly."""
        return self.largest_weight * self.forward.norm_bound() ** 2

    def minimiser(self, rhs: Tensor) -> Tensor:
        """M^-1 rhs."""
        raise AssumptionError(f"M x = rhs has no closed form for {type(self.forward).__name__}: it is not diagonal.")

    def start(self, rhs: Tensor, b: Tensor) -> Tensor:
        """A guess of M^-1 rhs: what the forward operator's approximate inverse makes of the measurements b, times the
        factor that minimises; without one rhs over the norm of M."""
        guess = self.forward.approximate_inverse(b)
        if guess is None:
            return rhs / self.norm()
        bend = inner_samples(guess, self(guess)).clamp_min(torch.finfo(guess.dtype).tiny)
        return expand(inner_samples(rhs, guess) / bend, guess) * guess

    def excess(self, x: Tensor, rhs: Tensor, box: Box) -> Tensor:
        """½<x,Mx> - <rhs,x> minus its minimum over the box, (batch,); infinite, since the minimum is not known."""
        return x.new_full((x.shape[0],), torch.inf)

    def norm(self) -> float:
        """‖M‖ is at most this. *Rigorous bound.*"""
        return self.largest_weight * self.forward.norm_bound() ** 2 + self.ridge

    def modulus(self) -> float:
        """A lower bound of the smallest eigenvalue of M, of all samples. *Rigorous bound.*"""
        return self.ridge + float(self.weights.min()) * self.forward.gram_lower_bound()

    def window(self) -> tuple[int, int] | None:
        """M couples pixels less far apart than this along each axis alone; None where that is not known."""
        return self.forward.window()

    @property
    def largest_weight(self) -> float:
        """Of the measurements."""
        return float(self.weights.max())

    def majorant(self) -> Tensor | float:
        """A diagonal matrix D with D - M positive semidefinite, to broadcast against images."""
        return self.norm()

    def number(self) -> Tensor | None:
        """The number that M multiplies with, shape (); None where it takes more than one."""
        return None

    def symbol(self, sides: tuple[int, ...], like: Tensor) -> Tensor | None:
        """M for each frequency of a torus of these sides, to broadcast against the half spectrum, in the dtype of
        images such as ``like``: with the mean of the weights for all; None where A is no convolution."""
        symbol = self.forward.gram_symbol(sides, like.dtype)
        if symbol is None:
            return None
        mean = expand(self.weights.flatten(1).mean(1), like) if self._per_sample else self.weights.mean()
        return symbol.to(like.device) * mean + self.ridge

    def pull(self, p: Tensor) -> Tensor:
        """A^T p for measurements p; counts nothing."""
        return self.forward.adjoint(p)

    @property
    def _per_sample(self) -> bool:
        return self.weights.dim() > len(self.forward.range_shape)

    def select(self, index: Tensor | slice) -> Self:
        """M for some samples."""
        return replace(self, weights=self.weights[index]) if self._per_sample else self

    def to(self, dtype: torch.dtype) -> Self:
        """M in another dtype."""
        return replace(self, weights=self.weights.to(dtype))

    def lifted(self, forward: LinearOperator, latent_shape: tuple[int, ...], own: float) -> Quadratic:
        """M beside ``own`` for latent variables of this shape; ``forward``: A beside what makes it of them."""
        return Quadratic(forward, self._lifted_weights(forward), self.ridge)

    def _lifted_weights(self, forward: LinearOperator) -> Tensor:
        """Those of the measurements, and ones for the latent variables, which have none."""
        weights, range_shape = self.weights, self.forward.range_shape
        if weights.dim() == 0 and float(weights) == 1.0:
            return weights
        data = weights.expand(*weights.shape[: -len(range_shape)], *range_shape).flatten(-len(range_shape))
        rest = data.new_ones(*data.shape[:-1], forward.range_shape[0] - data.shape[-1])
        return torch.cat([data, rest], -1)


@dataclass(frozen=True)
class DiagonalQuadratic(Quadratic):
    """A diagonal M, which is all that is used of it. diagonal: to broadcast against images, with a batch axis where
    the weights have one. identity: A x = x."""

    diagonal: Tensor
    identity: bool = False

    is_diagonal = True

    @property
    def is_ridge(self) -> bool:  # type: ignore[override]
        return not bool(self.weights.any())

    def __call__(self, x: Tensor) -> Tensor:
        return self.diagonal * x

    def primal_step(self, x: Tensor, pullback: Tensor, rhs: Tensor, step: Tensor) -> Tensor:
        """The proximal map, of x - step · pullback."""
        return torch.addcmul(x, rhs - pullback, step).div_(1.0 + step * self.diagonal)

    def explicit_lipschitz(self) -> float:
        return 0.0

    def modulus(self) -> float:
        return float(self.diagonal.min())

    def window(self) -> tuple[int, int]:
        return (1, 1)

    def minimiser(self, rhs: Tensor) -> Tensor:
        return rhs / self.diagonal

    def start(self, rhs: Tensor, b: Tensor) -> Tensor:
        """The right-hand side over the largest entry: for denoising the measurement."""
        return rhs / self.diagonal.amax().clamp_min(1e-12)

    def excess(self, x: Tensor, rhs: Tensor, box: Box) -> Tensor:
        """½<x,Mx> - <rhs,x> minus its minimum over the box, (batch,)."""
        return box.excess(x, self.minimiser(rhs), self.diagonal)

    def majorant(self) -> Tensor:
        return self.diagonal

    def number(self) -> Tensor | None:
        return self.diagonal if self.diagonal.dim() == 0 else None

    def symbol(self, sides: tuple[int, ...], like: Tensor) -> Tensor:
        """The mean of the diagonal for all frequencies."""
        axes = tuple(range(1 - like.dim(), 0))
        return self.diagonal if self.diagonal.dim() == 0 else self.diagonal.mean(axes, keepdim=True)

    def pull(self, p: Tensor) -> Tensor:
        return p if self.identity else super().pull(p)

    def select(self, index: Tensor | slice) -> Self:
        if not self._per_sample:
            return self
        return replace(self, weights=self.weights[index], diagonal=self.diagonal[index])

    def to(self, dtype: torch.dtype) -> Self:
        return replace(self, weights=self.weights.to(dtype), diagonal=self.diagonal.to(dtype))

    def lifted(self, forward: LinearOperator, latent_shape: tuple[int, ...], own: float) -> DiagonalQuadratic:
        weights, diagonal = self._lifted_weights(forward), self.diagonal
        if diagonal.dim() > 0 or float(diagonal) != own:
            dims = len(latent_shape)
            batch = diagonal.shape[: diagonal.dim() - dims] if diagonal.dim() > dims else ()
            image = diagonal.expand(*batch, *self.forward.domain_shape)
            diagonal = torch.cat([image, diagonal.new_full((*batch, *latent_shape), own)], -dims)
        return DiagonalQuadratic(forward, weights, self.ridge, diagonal)


def quadratic_of(forward: LinearOperator, weights: Tensor, ridge: float, b: Tensor) -> Quadratic:
    """M for measurements such as b, in whose dtype it is; by its diagonal where it has one, and by a number where that
    is all it takes."""
    diagonal, identity = forward.diagonal(), False
    if weights.dim() == 0 and b.device.type != "meta" and not bool(weights):
        return DiagonalQuadratic(forward, weights, ridge, weights + ridge)
    if diagonal is None:
        return Quadratic(forward, weights, ridge)
    if not any(diagonal.stride()):
        diagonal = diagonal.flatten()[0]  # a number, expanded
        identity = float(diagonal) == 1.0
    diagonal = weights * diagonal.to(b) ** 2 + ridge
    per_sample = diagonal.dim() > len(forward.domain_shape)
    if not per_sample and b.device.type != "meta" and diagonal.dim() > 0:
        first = diagonal.flatten()[0]
        diagonal = first if bool((diagonal == first).all()) else diagonal  # spares steps passes over the image
    return DiagonalQuadratic(forward, weights, ridge, diagonal, identity)
