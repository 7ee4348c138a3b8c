"""States and adjoint states of the samples a training run has visited, to go on from at the next visit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learnreg.hypergradients.compute import Start

__all__ = ["WarmStarts"]

_BYTES = 2 * 1024**3


class WarmStarts:
    """States by sample, at most ``limit`` bytes of them; samples beyond that start cold at every visit.

    domain_shape: of the images, without the batch axis.
    """

    def __init__(self, domain_shape: tuple[int, ...], limit: int = _BYTES) -> None:
        self._shape, self._limit = domain_shape, limit
        self._states: dict[int, Start] = {}

    def starts(self, indices: Sequence[int], b: Tensor) -> Start:
        """Earlier states of the samples; one that is new has no latent variables, so that they are guessed for all."""
        cold = self._cold_start(b)
        states = [self._states.get(i, Start(cold[k], torch.zeros_like(cold[k]))) for k, i in enumerate(indices)]
        columns = ([getattr(state, name) for state in states] for name in ("x", "X", "z", "Z"))
        x, X, z, Z = (None if any(v is None for v in column) else torch.stack(column) for column in columns)
        assert x is not None
        assert X is not None
        return Start(x, X, z, Z).part(slice(None), 1.0 / len(indices))

    def keep(self, indices: Sequence[int], state: Start) -> None:
        """Remember states, and adjoint states of the sum over samples: a mean's carry 1/batch, which varies."""
        item_bytes = 2 * sum(v[0].numel() * v.element_size() for v in (state.x, state.z) if v is not None)
        for k, i in enumerate(indices):
            if i in self._states or (len(self._states) + 1) * item_bytes <= self._limit:
                self._states[i] = state.part(k, len(indices))

    def _cold_start(self, b: Tensor) -> Tensor:
        return b if tuple(b.shape[1:]) == self._shape else b.new_zeros(b.shape[0], *self._shape)
