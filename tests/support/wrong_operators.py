"""Operators that break one property each, and the name of the property that has to be blamed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from registry import rand, randn
from torch import Tensor, nn

from learnreg.linear.operator import LinearOperator, linear_map

Map = Callable[[Tensor], Tensor]
SHAPE = (1, 6, 6)


class Custom(LinearOperator):
    """An operator from a pair of functions, as a user writes one."""

    def __init__(self, forward: Map, adjoint: Map, domain: tuple[int, ...] = SHAPE, range_: tuple[int, ...] = SHAPE):
        super().__init__(domain, range_)
        self._forward, self._adjoint = forward, adjoint

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._adjoint(y)


def matrix(rows: tuple[int, ...] = (7, 5), domain: tuple[int, ...] = SHAPE, seed: int = 3) -> Tensor:
    return randn(math.prod(rows), math.prod(domain), seed=seed)


def dense(
    M: Tensor, N: Tensor | None = None, domain: tuple[int, ...] = SHAPE, range_: tuple[int, ...] = (7, 5)
) -> Custom:
    """forward by the matrix M, adjoint by the transpose of N (of M by default)."""
    N = M if N is None else N

    def forward(x: Tensor) -> Tensor:
        return (x.flatten(1) @ M.to(x).T).reshape(-1, *range_)

    def adjoint(y: Tensor) -> Tensor:
        return (y.flatten(1) @ N.to(y)).reshape(-1, *domain)

    return Custom(forward, adjoint, domain, range_)


def scaled(factor: float) -> Custom:
    return dense(matrix(), factor * matrix())


def few_entries(relative: float) -> Custom:
    M = matrix()
    N = M.clone()
    N[4, 7] *= 1.0 + relative
    return dense(M, N)


def kernel() -> Tensor:
    return rand(3, 3, seed=4)[None, None]


def correlate(x: Tensor) -> Tensor:
    return F.conv2d(x, kernel().to(x), padding=1)


def correlate_adjoint(y: Tensor) -> Tensor:
    return F.conv_transpose2d(y, kernel().to(y), padding=1)


def on_images(adjoint: Map, n: int = 6) -> Custom:
    return Custom(correlate, adjoint, (1, n, n), (1, n, n))


def reflected(n: int = 6) -> Custom:
    """A blur of the reflected image whose adjoint forgets what lies outside."""

    def forward(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel().to(x))

    return Custom(forward, correlate_adjoint, (1, n, n), (1, n, n))


def weighted(rows: bool, cols: bool) -> Custom:
    M = matrix()
    d = 0.5 + rand(M.shape[0], 1, seed=5) if rows else torch.ones(1, 1, dtype=torch.float64)
    e = 0.5 + rand(1, M.shape[1], seed=6) if cols else torch.ones(1, 1, dtype=torch.float64)
    return dense(M, d * M * e)


class KeepsMemory(Custom):
    """Returns memory that it keeps, to be overwritten by the next call."""

    def __init__(self) -> None:
        super().__init__(lambda x: x, torch.clone)
        self._memory: dict[tuple[torch.Size, torch.dtype], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        result = self._memory.setdefault((x.shape, x.dtype), torch.empty_like(x))
        return result.copy_(x)


class Caches(Custom):
    """Returns what it computed last time for the same input, without a copy."""

    def __init__(self) -> None:
        super().__init__(torch.clone, torch.clone)
        self._seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        for known, result in self._seen:
            if known.shape == x.shape and known.dtype == x.dtype and torch.equal(known, x):
                return result
        self._seen.append((x.clone(), 2.0 * x))
        return self._seen[-1][1]

    def adjoint(self, y: Tensor) -> Tensor:
        return 2.0 * y


class Bounded(Custom):
    """The identity, which declares other numbers."""

    def __init__(self, norm: float = 1.0, gram: float = 0.0, rows: float = 1.0, diagonal: float | None = None) -> None:
        super().__init__(torch.clone, torch.clone)
        self.norm, self.gram, self.rows, self._diagonal = norm, gram, rows, diagonal

    def norm_bound(self) -> float:
        return self.norm

    def gram_lower_bound(self) -> float:
        return self.gram

    def row_norms(self, grouped: bool) -> float:
        return self.rows

    def diagonal(self) -> Tensor | None:
        return None if self._diagonal is None else torch.full(SHAPE, self._diagonal)


class Declared(Custom):
    """-x, of which its author says that it has no negative entries."""

    nonnegative = True

    def __init__(self) -> None:
        super().__init__(torch.neg, torch.neg)


class Learnable(Custom):
    """theta · x, whose gradient in theta is lost, or whose Lipschitz constant is too small."""

    def __init__(self, detached: bool, lipschitz: float | None = 1.0) -> None:
        super().__init__(lambda x: self._theta() * x, lambda y: self._theta() * y)
        self.theta = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.detached, self.lipschitz = detached, lipschitz

    def _theta(self) -> Tensor:
        return self.theta.detach() if self.detached else self.theta

    def parameter_lipschitz(self) -> float | None:
        return self.lipschitz


class _OneBackward(torch.autograd.Function):
    """A black box whose backward calls plain tensors: the second derivative is lost."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return correlate(x.detach())

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(correlate_adjoint(grad.detach()).numpy().copy())


def lost_second_derivative() -> Custom:
    return Custom(lambda x: _OneBackward.apply(x), lambda y: linear_map(y, correlate_adjoint, correlate))


@dataclass(frozen=True)
class Wrong:
    """An operator, the property that fails, and words the message must hold."""

    operator: Callable[[], object]
    blamed: str
    words: str = ""


def _noise(x: Tensor) -> Tensor:
    return x + 1e-3 * torch.randn_like(x)


WRONG: dict[str, Wrong] = {
    "returns-no-tensor": Wrong(lambda: Custom(lambda x: x.numpy(), torch.clone), "shape", "ndarray"),
    "drops-the-batch": Wrong(lambda: Custom(lambda x: x[0], torch.clone), "shape", "(1, 6, 6), expected (2, 1, 6, 6)"),
    "wrong-range": Wrong(lambda: Custom(lambda x: x[..., 1:], torch.clone), "shape", "forward"),
    "wrong-shape-of-adjoint": Wrong(lambda: Custom(torch.clone, lambda y: y[..., None]), "shape", "adjoint"),
    "raises": Wrong(lambda: Custom(lambda x: x @ torch.ones(5, 5), torch.clone), "shape", "RuntimeError"),
    "always-float32": Wrong(lambda: Custom(lambda x: x.float(), torch.clone), "dtype", ".to(x.dtype)"),
    "always-float64": Wrong(lambda: Custom(torch.clone, lambda y: y.double()), "dtype", "adjoint"),
    "only-float64": Wrong(lambda: Custom(lambda x: x @ torch.eye(6).double(), torch.clone), "dtype", "raised"),
    "nan": Wrong(lambda: Custom(lambda x: x / x.abs() * x.abs(), torch.clone), "finite", "NaN"),
    "infinite": Wrong(lambda: Custom(torch.clone, lambda y: y / 0.0), "finite", "adjoint"),
    "dropout": Wrong(lambda: Custom(nn.Dropout(0.5), torch.clone), "determinism", "dropout"),
    "noise": Wrong(lambda: Custom(torch.clone, _noise), "determinism", "adjoint"),
    "in-place": Wrong(lambda: Custom(lambda x: x.mul_(2.0).clone(), lambda y: 2.0 * y), "purity", "in place"),
    "in-place-returned": Wrong(lambda: Custom(lambda x: x.mul_(2.0), lambda y: 2.0 * y), "purity", "in place"),
    "returns-its-input": Wrong(lambda: Custom(lambda x: x, torch.clone), "purity", "is its input or a view"),
    "returns-a-view": Wrong(lambda: Custom(torch.clone, lambda y: y[:]), "purity"),
    "returns-kept-memory": Wrong(KeepsMemory, "purity", "a later call"),
    "returns-its-cache": Wrong(Caches, "purity", "memory that the operator keeps"),
    "expanded": Wrong(
        lambda: Custom(lambda x: x.mean((2, 3), keepdim=True).expand(x.shape), torch.clone), "purity", "share memory"
    ),
    "subtracts-the-batch-mean": Wrong(lambda: Custom(lambda x: x - x.mean(0), torch.clone), "batch", "each sample"),
    "normalises-by-the-batch": Wrong(lambda: Custom(torch.clone, lambda y: y / y.abs().max()), "batch", "adjoint"),
    "only-the-first-sample": Wrong(
        lambda: Custom(lambda x: x * (torch.arange(len(x)) < 2).reshape(-1, 1, 1, 1), torch.clone), "batch"
    ),
    "abs": Wrong(lambda: Custom(torch.abs, torch.clone), "linearity", "forward"),
    "relu": Wrong(lambda: Custom(torch.clone, torch.relu), "linearity", "adjoint"),
    "clamp": Wrong(lambda: Custom(lambda x: x.clamp(-50.0, 50.0), torch.clone), "linearity", "clamp"),
    "affine": Wrong(lambda: Custom(lambda x: x + 0.01, torch.clone), "linearity", "constant is added"),
    "normalises": Wrong(
        lambda: Custom(lambda x: x / x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1), torch.clone), "linearity"
    ),
    "adjoint-off-by-half-a-percent": Wrong(lambda: scaled(1.005), "adjoint", "off by a factor 1.005"),
    "adjoint-off-by-one-percent": Wrong(lambda: scaled(1.01), "adjoint", "off by a factor 1.01,"),
    "adjoint-negative": Wrong(lambda: scaled(-1.0), "adjoint", "off by a factor -1,"),
    "one-entry-off-by-half-a-percent": Wrong(lambda: few_entries(0.005), "adjoint"),
    "one-entry-off-by-a-millionth": Wrong(lambda: few_entries(1e-6), "adjoint"),
    "adjoint-zero": Wrong(lambda: dense(matrix(), 0.0 * matrix()), "adjoint"),
    "adjoint-unrelated": Wrong(lambda: dense(matrix(), matrix(seed=9)), "adjoint", "differs from A^T"),
    "adjoint-transposed": Wrong(
        lambda: on_images(lambda y: correlate_adjoint(y).mT.contiguous()), "adjoint", "rows and columns exchanged"
    ),
    "adjoint-flipped": Wrong(lambda: on_images(lambda y: correlate_adjoint(y).flip(-1)), "adjoint", "columns flipped"),
    "data-transposed": Wrong(
        lambda: dense(matrix((7, 5)), matrix((7, 5)).reshape(7, 5, -1).flip(0).flatten(0, 1)),
        "adjoint",
        "to y with rows",
    ),
    "kernel-not-flipped": Wrong(lambda: on_images(correlate), "adjoint", "forward itself"),
    "inverse": Wrong(
        lambda: dense(matrix((6, 6)), torch.linalg.inv(matrix((6, 6))).T, range_=(6, 6)),
        "adjoint",
        "inverse of forward",
    ),
    "weighted-measurements": Wrong(lambda: weighted(True, False), "adjoint", "weights of the measurements between"),
    "weighted-pixels": Wrong(lambda: weighted(False, True), "adjoint", "weights of the pixels between"),
    "weighted-both": Wrong(lambda: weighted(True, True), "adjoint", "of the measurements (ratio"),
    "reflection-forgotten": Wrong(reflected, "adjoint", "concentrated at the boundary"),
    "reflection-forgotten-large": Wrong(lambda: reflected(64), "adjoint", "concentrated at the boundary of the image"),
    "computes-in-float32": Wrong(
        lambda: Custom(lambda x: correlate(x.float()).to(x), lambda y: correlate_adjoint(y.float()).to(y)),
        "precision",
        "checked with dtype=torch.float32",
    ),
    "detached": Wrong(
        lambda: Custom(lambda x: correlate(x.detach()), correlate_adjoint), "differentiability", "cut from the autograd"
    ),
    "detached-adjoint": Wrong(
        lambda: Custom(correlate, lambda y: correlate_adjoint(y.detach())), "differentiability", "of adjoint is cut"
    ),
    "second-derivative-lost": Wrong(lost_second_derivative, "hessian-vector product", "lose A^T A"),
    "norm-too-small": Wrong(lambda: Bounded(norm=0.99), "norm_bound", "below the norm"),
    "norm-far-too-large": Wrong(lambda: Bounded(norm=1.6), "norm_bound", "1.5 times"),
    "norm-nan": Wrong(lambda: Bounded(norm=math.nan), "norm_bound"),
    "gram-bound-too-large": Wrong(lambda: Bounded(gram=1.001), "gram_lower_bound", "above an eigenvalue"),
    "gram-bound-negative": Wrong(lambda: Bounded(gram=-1.0), "gram_lower_bound", "negative"),
    "wrong-diagonal": Wrong(lambda: Bounded(diagonal=1.001), "diagonal"),
    "row-norms-too-small": Wrong(lambda: Bounded(rows=0.9), "row_norms"),
    "negative": Wrong(Declared, "nonnegative", "negative responses"),
    "parameter-detached": Wrong(lambda: Learnable(True), "parameter gradients", "theta"),
    "parameter-lipschitz-too-small": Wrong(lambda: Learnable(False, 0.9), "parameter_lipschitz", "no bound"),
}
