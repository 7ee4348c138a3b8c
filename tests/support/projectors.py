"""What holds of every projector that is computed on the way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learnreg.operators import LinearOperator


def bits_do_not_depend_on_threads(A: LinearOperator, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A(x) and its transpose of y, computed by one, two and five threads."""
    monkeypatch.setattr("learnreg.kernels.threads._LEAST", 0)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append((A(x), A.adjoint(y)))
    finally:
        torch.set_num_threads(threads)
    for image, back in found[1:]:
        assert torch.equal(image, found[0][0])
        assert torch.equal(back, found[0][1])


def norm_found_by(A: LinearOperator, vector: Tensor, steps: int) -> float:
    """The norm, by power iteration: a lower bound."""
    for _ in range(steps):
        vector = A.adjoint(A(vector))
        vector = vector / vector.norm()
    return float(A(vector).norm())
