"""Lemma 4 at the price of a few passes over the responses: Frobenius norms in place of spectral ones.

Every norm of the sharp bound is the root of the largest eigenvalue of a Gram matrix, which its trace bounds: one box
filter and one inner product for a channel. Images K_g^T p_g of parameters of potentials count by ‖p_g‖ ‖K‖. The bound
is 1.2 to 2.5 times the sharp one as measured; as bounds fall faster than the error of the state, a few more iterations
make up for it at a tenth of the price of eigenvalues. *Rigorous bounds* per sample, (batch,).
"""

from __future__ import annotations

import math

from torch import Tensor

from learnreg.certificates.groups import GroupBound, group_norm, group_pullback_norm
from learnreg.certificates.sharp import SharpBound
from learnreg.linear.parameter_groups import Density, Pairing

__all__ = ["FrobeniusBound"]


class FrobeniusBound(SharpBound):
    """The sharp bound without eigenvalues."""

    def of_operator(self, group: Pairing) -> GroupBound:
        return super().of_operator(group.by_traces())

    def _pullback_norm(self, group: Density, t: Tensor, y: Tensor) -> Tensor:
        s = group.size(t, y)
        if s is self.responses.y and group.share is None and math.prod(group.shape) == 1:  # K^T y is at hand
            return group_pullback_norm(self.instance, s, group.shape, self.pullback)
        return group_norm(s, group.shape) * self.L
