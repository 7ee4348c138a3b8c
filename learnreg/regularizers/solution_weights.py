"""Weights of a regularizer's terms from a solution by which a chain of convex problems lowers one energy."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from learnreg.linear.samples import expand, sum_samples
from learnreg.lower_level.chain import PullChange, SolutionWeights, WeightChange
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.potentials.base import Potential
from learnreg.potentials.logarithmic import Logarithmic
from learnreg.potentials.proximal import Elementwise, ProximalPotential
from learnreg.regularizers.weight_pull import MajorisingPull, Moved, Window

__all__ = ["MajorisingWeights"]

_UP = 1.0 + 1e-9
_FLOOR = 1e-15
"""Of a change of weights, which are near 1 and rounded."""


class MajorisingWeights(SolutionWeights):
    """w = h'(u) for the densities u_i = f_i((K x)_i) and h(u) = s log(1 + u/s), which is concave; over a window w = B^T
    h'(B u), B a correlation with learned numbers >= 0 that add up to 1. The energy that falls is sum_j h((B u)_j).

    Parameters
    ----------
    scales: s > 0 of each channel of places, in units of densities; the raw parameter is ``log_scale``.
    window: side of B, odd; 1 for weights of each place alone. The raw parameter ``logits`` is constant at first.
    noise_conditioned: s is multiplied by a power of the noise level, with learned ``scale_exponents`` that start at 2,
        where denoising does not depend on the units of images.
    """

    majorising = True
    _log_noise = 0.0

    def __init__(self, scales: Tensor, window: int = 1, noise_conditioned: bool = False) -> None:
        super().__init__()
        self.window, self.noise_conditioned = window, noise_conditioned
        self.log_scale = nn.Parameter(scales.log())
        if noise_conditioned:
            self.scale_exponents = nn.Parameter(torch.full_like(self.log_scale, 2.0))
        if window > 1:
            self.logits = nn.Parameter(scales.new_zeros(window, window))

    def at_noise(self, ratio: float) -> Self:
        twin = copy.copy(self)
        twin._log_noise = math.log(ratio)
        return twin

    def of(self, terms: SaddleTerms, x: Tensor, t: Tensor) -> Tensor:
        s, u = self._scales(t), self._densities(terms.potential, t)
        return self._spread(1.0 / (1.0 + self._gathered(u) / s)).clamp(max=1.0)

    def value(self, terms: SaddleTerms, t: Tensor) -> Tensor:
        s, u = self._scales(t), self._densities(terms.potential, t)
        return sum_samples(s * torch.log1p(self._gathered(u) / s))

    def change(self, terms: SaddleTerms, x: Tensor, t: Tensor, e: Tensor) -> WeightChange:
        """u moves by |f'| r + ½ hi r² at most where a response moves by r <= ‖k_i‖ e, and h' falls.

        Together |dw| <= B^T (G ∘ (B (F ∘ |dt|))), G the largest |h''| and F the largest |f'|: a matrix A without
        negative entries, ‖diag(a) A‖² <= its largest row sum times its largest column sum, and ‖dt‖ <= ‖K‖ e.
        """
        f, K, s = terms.potential, terms.operator, self._scales(t)
        radius = f.reach(K) * expand(e, t) * _UP
        steepest = f.size(f.grad(t)) + f.curvature_bounds(t, radius)[1] * radius
        moved, u = steepest * radius * _UP, self._densities(f, t)
        ends = ((u - moved).clamp_min(0.0), u, u + moved)
        most, w, least = (1.0 / (1.0 + self._gathered(end) / s) for end in ends)
        slope = most**2 / s
        alone = self._spread(torch.maximum(most - w, w - least)) * _UP + _FLOOR
        reach = K.norm_bound() * e * _UP

        def together(factors: Tensor) -> Tensor:
            rows = factors * self._spread(slope * self._gathered(steepest))
            columns = steepest * self._spread(slope * self._gathered(factors))
            entries = math.sqrt(factors[0].numel()) * _FLOOR * _largest(factors)
            return reach * (_largest(rows) * _largest(columns)).sqrt() * _UP + entries

        return WeightChange(alone, together)

    def pull_change(
        self, terms: SaddleTerms, x: Tensor, t: Tensor, e: Tensor, p: Tensor, moved: Moved
    ) -> PullChange | None:
        """Exponents share the group of the scales: their gradient is that of the scales times the logarithm of the
        noise level."""
        window = Window(self._gathered, self._spread, self.window)
        found = MajorisingPull(terms, x, t, e, p, moved, self._scales(t), window).change()
        spread = math.hypot(1.0, self._log_noise) * _UP
        return replace(found, own=(spread * found.own[0], *found.own[1:]), magnitude=spread * found.magnitude)

    def energy_terms(self, terms: SaddleTerms) -> SaddleTerms | None:
        f = terms.potential
        if self.window > 1 or not isinstance(f, Elementwise):
            return None
        scale = self._log_scales().detach().double().exp().reshape(-1, *(1,) * (len(terms.operator.range_shape) - 1))
        return replace(terms, potential=Logarithmic(f, scale))

    def scale_parameters(self) -> list[nn.Parameter]:
        return [self.log_scale]

    def _densities(self, f: Potential, t: Tensor) -> Tensor:
        assert isinstance(f, ProximalPotential)
        return f.density(t).clamp_min(0.0)

    def _log_scales(self) -> Tensor:
        """At the noise level in use."""
        return self.log_scale + self._log_noise * self.scale_exponents if self.noise_conditioned else self.log_scale

    def _scales(self, t: Tensor) -> Tensor:
        return self._log_scales().to(t).exp().reshape(-1, *(1,) * (t.dim() - 2))

    def _kernel(self, u: Tensor) -> Tensor:
        kernel = self.logits.to(u).flatten().softmax(0).reshape(1, 1, self.window, self.window)
        return kernel.expand(u.shape[1], -1, -1, -1)

    def _gathered(self, u: Tensor) -> Tensor:
        """B u; rows at the border add up to less than 1."""
        if self.window == 1:
            return u
        u = u.expand(-1, self.log_scale.numel(), *u.shape[2:])
        return torch.nn.functional.conv2d(u, self._kernel(u), padding=self.window // 2, groups=u.shape[1])

    def _spread(self, v: Tensor) -> Tensor:
        """B^T v."""
        if self.window == 1:
            return v
        return torch.nn.functional.conv_transpose2d(v, self._kernel(v), padding=self.window // 2, groups=v.shape[1])

    def extra_repr(self) -> str:
        return f"channels={self.log_scale.numel()}, window={self.window}"


def _largest(t: Tensor) -> Tensor:
    """Of each sample, (batch,)."""
    return t.flatten(1).amax(1)
