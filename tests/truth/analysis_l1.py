"""The truth about small lower levels with an l1-norm: the dual is a least-squares problem in a box, which SciPy's
active-set method solves; dense matrices on the kernel of the responses that vanish give derivatives by autograd."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from truth.dense import Truth, norm
from truth.draw import DOUBLE

import learnreg as lr

__all__ = ["box_dual", "truth_of_l1"]

_ZERO = 1e-7


class _Matrices:
    """M, q, K and the weights of every sample, differentiable in the parameters of the problem."""

    def __init__(self, problem: lr.LowerLevelProblem, b: Tensor) -> None:
        shape = problem.operator.domain_shape
        n = math.prod(shape)
        unit = torch.eye(n, dtype=DOUBLE).reshape(n, *shape)
        A = problem.operator(unit).flatten(1).T
        weights = problem.data_term.at(b).weights_for(b).expand(b.shape).flatten(1)
        terms = problem.saddle_terms(DOUBLE)
        ridge = problem.ridge * torch.eye(n, dtype=DOUBLE)
        self.M = [A.T @ (w[:, None] * A) + ridge for w in weights]
        self.q = [A.T @ (w * v) for w, v in zip(weights, b.flatten(1), strict=True)]
        self.K = terms.operator(unit).flatten(1).T
        weight = torch.as_tensor(terms.potential.weight, dtype=DOUBLE)
        self.weight = weight.expand(terms.operator.range_shape).flatten()


def box_dual(M: Tensor, q: Tensor, K: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """x and one dual point y, by bounded least squares."""
    from scipy.optimize import lsq_linear  # hunts of other problems do without

    R = torch.linalg.cholesky(M, upper=True)
    left, right = (torch.linalg.solve_triangular(R.T, v, upper=False) for v in (K.T, q[:, None]))
    bound = weight.numpy()
    found = lsq_linear(left.numpy(), right[:, 0].numpy(), (-bound, bound), method="bvls", tol=1e-15, max_iter=5000)
    y = torch.from_numpy(np.asarray(found.x))
    return torch.linalg.solve(M, q - K.T @ y), y


def _reduced(M: Tensor, q: Tensor, K: Tensor, force: Tensor, zero: Tensor, learned: bool) -> Tensor:
    """argmin ½<x, M x> - <q - force, x> on the kernel of K_I; differentiable in K, too, where the rows are independent,
    and in all else."""
    rows = K[zero]
    if not len(rows):
        return torch.linalg.solve(M, q - force)
    if learned and len(rows) <= len(q):
        whole = torch.cat([torch.cat([M, rows.T], 1), torch.cat([rows, rows.new_zeros(len(rows), len(rows))], 1)])
        return torch.linalg.solve(whole, torch.cat([q - force, q.new_zeros(len(rows))]))[: len(q)]
    _, sizes, Vh = torch.linalg.svd(rows.detach())
    Z = Vh[int((sizes > 1e-9 * sizes[0]).sum()) :].T
    return Z @ torch.linalg.solve(Z.T @ M @ Z, Z.T @ (q - force))


def truth_of_l1(problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss) -> Truth:
    """Solution, adjoint state, hypergradient and loss, with slacks; ``usable``: the responses are clearly 0 or not."""
    b = b.double()
    parameters, shape = problem.learnable(), (-1, *problem.operator.domain_shape)
    xs, Xs, slacks, sizes, usable = [], [], [], [], True
    with torch.enable_grad():
        dense = _Matrices(problem, b)
        patterns = []
        for M, q in zip(dense.M, dense.q, strict=True):
            K, weight = dense.K.detach(), dense.weight.detach()
            rough, _ = box_dual(M.detach(), q.detach(), K, weight)
            t = K @ rough
            scale = _ZERO * K.norm(dim=1) * rough.norm().clamp_min(1e-12)
            zero = t.abs() <= scale
            usable = usable and not bool(((t.abs() > scale) & (t.abs() < 100.0 * scale)).any())
            independent = int(torch.linalg.matrix_rank(K[zero])) == int(zero.sum())
            signs = torch.where(zero, 0.0, t.sign())
            force = dense.K.T @ (dense.weight * signs)
            x = _reduced(M, q, dense.K, force, zero, independent and dense.K.requires_grad)
            usable = usable and float((x.detach() - rough).norm()) <= 1e-6 * (1.0 + float(rough.norm()))
            xs.append(x)
            patterns.append(zero)
            slacks.append(_slack(M.detach(), K[zero]) * float(x.detach().norm()))
        x = torch.stack(xs)
        value = loss.value(x.reshape(shape))
        grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, retain_graph=True)
        (slope,) = torch.autograd.grad(value, x)
    for M, zero, g in zip(dense.M, patterns, slope, strict=True):
        X = _reduced(M.detach(), -g.detach(), dense.K.detach(), torch.zeros_like(g), zero, learned=False)
        Xs.append(X)
        sizes.append(_slack(M.detach(), dense.K.detach()[zero]) * float(X.norm()))
    gradient = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), grads, strict=True)}
    eps = 1e-13 if all(p.dtype == DOUBLE for p in problem.parameters()) else 3e-7
    relative = max(s / max(float(v.norm()), 1e-300) for s, v in zip(sizes, Xs, strict=True))
    slack = (10.0 * relative + eps) * norm(gradient)
    return Truth(
        x.detach(), torch.stack(Xs), gradient, float(value.detach()), torch.tensor(slacks), torch.tensor(sizes),
        slack, usable,
    )  # fmt: skip


def _slack(M: Tensor, rows: Tensor) -> float:
    """What rounding leaves of dense solves, relative."""
    condition = float(torch.linalg.cond(M))
    if bool(rows.any()):
        sizes = torch.linalg.svdvals(rows)
        sizes = sizes[sizes > 1e-9 * sizes[0]]
        condition *= float(sizes[0] / sizes[-1])
    return 1e-14 * condition
