"""Training pairs for tests of training: noisy and clean images of noise."""

from __future__ import annotations

import registry
from torch import Tensor


class Pairs:
    """Four of 8 x 8 pixels, in float32."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = registry.rand(1, 8, 8, seed=index).float()
        return x + 0.1 * registry.randn(1, 8, 8, seed=10 + index).float(), x
