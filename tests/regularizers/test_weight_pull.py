"""How far the adjoints of weights of solutions move, against changes by autograd."""

from __future__ import annotations

import pytest
import torch
from registered.chains import CHAIN_SHAPE, CHAINS, away, chain_data
from registered.randomness import randn
from torch import Tensor

import learnreg as lr
from learnreg.linear.samples import expand, norm_samples
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.operators import Identity
from learnreg.regularizers import Reweighted


def _slopes(R: Reweighted, x: Tensor, p: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(∂M/∂x)^T p, (batch, *shape), and ∂_theta <M, p> of each sample, by raw parameter."""
    pulled, gradients = [], []
    for i in range(len(x)):
        with torch.enable_grad():
            at = x[i : i + 1].detach().requires_grad_()
            terms = R.base.saddle_terms(CHAIN_SHAPE)
            exact = SaddleTerms(terms.operator, terms.potential.to(torch.float64))
            paired = (R.weights.of(exact, at, exact.operator(at)) * p[i]).sum()
            named = {n: q for n, q in R.named_parameters() if q.requires_grad}
            slope, *found = torch.autograd.grad(paired, [at, *named.values()], allow_unused=True)
        pulled.append(slope)
        pairs = zip(named.items(), found, strict=True)
        gradients.append({n: torch.zeros_like(q) if g is None else g for (n, q), g in pairs})
    return torch.cat(pulled), {n: torch.stack([g[n] for g in gradients]) for n in gradients[0]}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize(("e", "moving"), [(1e-3, 0.0), (0.0, 1e-3), (0.3, 0.3), (3.0, 0.0)])
def test_bounds_hold_for_all_images_and_multipliers_within_reach(name: str, e: float, moving: float) -> None:
    R, x = away(CHAINS[name]()), chain_data()
    terms = R.base.saddle_terms(CHAIN_SHAPE)
    terms = SaddleTerms(terms.operator, terms.potential.to(torch.float64).detached())
    with torch.no_grad():
        t = terms.operator(x)
        places = R.weights.of(terms, x, t).shape
        p, distance = randn(*places, seed=4), torch.full((len(x),), e, dtype=torch.float64)
        change = R.weights.pull_change(terms, x, t, distance, p, lambda a: moving * a.flatten(1).amax(1))
    assert change is not None
    pulled, gradient = _slopes(R, x, p)
    roles = R.base.parameter_roles()
    jacobian = lr.LowerLevelProblem(Identity(CHAIN_SHAPE), R.base).frozen().jacobian_bounds
    bounds = {g.name: jacobian.get(g.name, 1.0) * change.of_group(g) for g in terms.parameter_groups()}  # type: ignore[operator]
    largest = dict.fromkeys(("pulled", "own", *bounds), 0.0)
    for seed in range(5):
        step, other = randn(*x.shape, seed=50 + seed), randn(*places, seed=80 + seed)
        step = pulled * (-1) ** seed + 0.1 * step if seed < 2 else step
        at = x + e * step / expand(norm_samples(step), step)
        far, far_gradient = _slopes(R, at, p + moving * other / expand(norm_samples(other), other))
        found = {"pulled": norm_samples(far - pulled), "own": torch.zeros(len(x))}
        for n, g in gradient.items():
            moved = (far_gradient[n] - g).reshape(len(x), -1).square().sum(1)
            kind = roles.get(n.removeprefix("base."), "own")
            found[kind] = found.get(kind, torch.zeros(len(x))) + moved
        allowed = {"pulled": change.pulled, "own": sum(b * b for b in change.own).sqrt(), **bounds}
        for kind, moved in found.items():
            moved = moved if kind == "pulled" else moved.sqrt()
            bound = allowed[kind]
            assert bool((moved <= bound + 1e-12).all()), (kind, moved, bound)
            largest[kind] = max(largest[kind], float((moved / bound).max()))
    if e + moving < 0.1:
        assert largest["pulled"] > 1e-3  # far from nothing
