"""Training of chains of reweighted problems, and their model files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from registered.chains import CHAINS, away, chain_data

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import Reweighted


@pytest.mark.parametrize("name", ["windows", "free"])
def test_chains_are_trained_and_stored(name: str, tmp_path: Path) -> None:
    b, x_true = chain_data(), chain_data(seed=5).clamp(0.0, 1.0).round()
    problem = lr.LowerLevelProblem(Identity(tuple(b.shape[1:])), away(CHAINS[name]()))
    before = {n: p.detach().clone() for n, p in problem.named_parameters()}
    first = float(lr.SquaredError(x_true).value(lr.solve(problem, b, 1e-3).x))
    result = lr.train(problem, (b, x_true), updates=6, batch_size=2, out=str(tmp_path))
    found = lr.solve(problem, b, 1e-3).x
    assert float(lr.SquaredError(x_true).value(found)) < first
    assert all(not torch.equal(p, before[n]) for n, p in problem.named_parameters())
    assert len(result.rows) == 6
    model = lr.load(tmp_path / "model.safetensors")
    assert isinstance(model.regularizer, Reweighted)
    assert model.regularizer.steps == problem.regularizer.steps
    torch.testing.assert_close(model.reconstruct(b, tolerance=1e-3).to(found), found, rtol=0, atol=1e-4)
