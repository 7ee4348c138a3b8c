"""Operators of other libraries, as tests adapt them: name -> (what must be installed, factory)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import registry
import torch
from torch import Tensor, nn

from learnreg.linear.operator import LinearOperator
from learnreg.operators import (
    assemble,
    from_astra,
    from_callables,
    from_deepinv,
    from_mrinufft,
    from_mrpro,
    from_odl,
    from_pylops,
    from_scipy,
    from_sigpy,
)

H, W = 5, 6
SHAPE = (1, H, W)


def random_sparse(m: int, n: int, dtype: str = "float64", seed: int = 0) -> Any:
    import scipy.sparse

    return scipy.sparse.random(m, n, density=0.4, format="csr", random_state=seed, dtype=dtype)


class FiniteDifference:
    """A picklable scipy-like operator without block methods."""

    def __init__(self, n: int) -> None:
        self.shape, self.dtype = (n - 1, n), np.dtype(np.float64)

    def matvec(self, x: Any) -> Any:
        return np.diff(x.reshape(-1))

    def rmatvec(self, y: Any) -> Any:
        return -np.diff(y.reshape(-1), prepend=0.0, append=0.0)


def _scipy_operator() -> LinearOperator:
    import scipy.sparse.linalg

    difference = FiniteDifference(H * W)
    wrapped = scipy.sparse.linalg.LinearOperator(
        difference.shape, matvec=difference.matvec, rmatvec=difference.rmatvec, dtype=np.float64
    )
    return from_scipy(wrapped, SHAPE, (H * W - 1,), check=True)


class Physics(nn.Module):
    """What DeepInverse calls a linear physics: A and A_adjoint on batches, constants in float32 buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", registry.rand(1, 1, 3, 3, seed=40).float())

    def A(self, x: Tensor, **_: Any) -> Tensor:
        return torch.nn.functional.conv2d(x, self.kernel, padding=1)[..., ::2, :]

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        full = y.new_zeros(y.shape[0], 1, H, y.shape[-1])
        full[..., ::2, :] = y
        return torch.nn.functional.conv_transpose2d(full, self.kernel, padding=1)


def _pylops(name: str) -> LinearOperator:
    import pylops

    kernel = np.random.default_rng(1).standard_normal((3, 3))
    derivative = pylops.FirstDerivative((H, W), axis=0)
    convolution = pylops.signalprocessing.Convolve2D((H, W), h=kernel, offset=(1, 1))
    operators = {
        "derivative": derivative,
        "convolution": convolution,
        "stack": pylops.VStack([derivative, 2.0 * convolution]),
        "gradient": pylops.Gradient((H, W)),
        "composition": derivative @ convolution,
    }
    return from_pylops(operators[name])


def _odl(name: str) -> LinearOperator:
    import odl

    rng = np.random.default_rng(2)
    fine = odl.uniform_discr([0, 0], [1, 3], (H, W))
    weights = 0.5 + rng.random((H, W))
    weighted = odl.rn((H, W), weighting=weights)
    matrix = rng.standard_normal((7, H))
    spaces = {"domain": odl.rn(H, weighting=2.0), "range": odl.rn(7, weighting=1.0 + rng.random(7))}
    operators: dict[str, Callable[[], Any]] = {
        "gradient": lambda: odl.Gradient(fine),
        "gradient-weighted-product": lambda: odl.Gradient(fine, range=odl.ProductSpace(fine, 2, weighting=[1.0, 3.0])),
        "gradient-in-torch": lambda: odl.Gradient(odl.uniform_discr([0, 0], [1, 3], (H, W), impl="pytorch")),
        "laplacian": lambda: odl.Laplacian(fine),
        "resampling-of-cells": lambda: _Pick(fine, odl.uniform_discr([0, 0], [2, 5], (2, 3)), odl),
        "cells-to-weights": lambda: _Pick(weighted, odl.rn((2, 3), weighting=1.0 + rng.random((2, 3))), odl),
        "matrix-ignores-weights": lambda: odl.MatrixOperator(matrix, **spaces),
        "broadcast": lambda: odl.BroadcastOperator(odl.IdentityOperator(fine), odl.Gradient(fine)),
    }
    return from_odl(operators[name]())


def _Pick(domain: Any, range_: Any, odl: Any) -> Any:
    """Some cells of an image, with the adjoint that ODL's contract asks for: <Ax,y>_range = <x,By>_domain."""

    def weigh(space: Any) -> Any:
        return space.weighting.array if hasattr(space.weighting, "array") else space.weighting.const

    class Pick(odl.Operator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(domain, range_, linear=True)

        def _call(self, x: Any) -> Any:
            return self.range.element(x.asarray()[::3, ::2].copy())

        @property
        def adjoint(self) -> Any:
            class Back(odl.Operator):  # type: ignore[misc]
                def __init__(self) -> None:
                    super().__init__(range_, domain, linear=True)

                def _call(self, y: Any) -> Any:
                    full = np.zeros(self.range.shape)
                    full[::3, ::2] = y.asarray() * weigh(range_)
                    return self.range.element(full / weigh(domain))

            return Back()

    return Pick()


def _astra(kind: str) -> LinearOperator:
    import astra

    volume = astra.create_vol_geom(H, W)
    angles = np.linspace(0, np.pi, 4, endpoint=False)
    if kind.endswith("fanflat"):
        geometry = astra.create_proj_geom("fanflat", 1.0, 9, 2 * angles, 20.0, 20.0)
    else:
        geometry = astra.create_proj_geom("parallel", 1.0, 9, angles)
    projector = astra.create_projector(kind, geometry, volume)
    return from_astra(projector, SHAPE, (1, 4, 9))


def ray_transform() -> Any:
    import odl.applications.tomo as tomo
    from odl import uniform_discr

    space = uniform_discr([-H, -W], [H, W], (H, W), dtype="float32")
    geometry = tomo.parallel_beam_geometry(space, num_angles=4)
    return tomo.RayTransform(space, geometry, impl="astra_cpu")


class CoilsThenFourier:
    """What MRpro calls a linear operator: a call and an adjoint on (batch, coils, z, y, x), tuples of one tensor."""

    def __init__(self) -> None:
        self.coils = torch.complex(registry.randn(2, 1, H, W, seed=41), registry.randn(2, 1, H, W, seed=42))

    def __call__(self, x: Tensor) -> tuple[Tensor]:
        return (torch.fft.fft2(self.coils.to(x) * x)[..., ::2, :],)

    def adjoint(self, y: Tensor) -> tuple[Tensor]:
        full = y.new_zeros(*y.shape[:-2], H, W)
        full[..., ::2, :] = y
        return ((self.coils.to(y).conj() * torch.fft.ifft2(full, norm="forward")).sum(1, keepdim=True),)


def sigpy_sense() -> Any:
    import sigpy.mri

    coils = np.random.default_rng(3).standard_normal((2, 2, H, W))
    mask = np.random.default_rng(4).random((H, W)) > 0.4
    return sigpy.mri.linop.Sense(coils[0] + 1j * coils[1], weights=mask)


def mrinufft_operator(**options: Any) -> Any:
    import mrinufft

    trajectory = np.random.default_rng(5).random((40, 2)).astype(np.float32) - 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it rescales the trajectory
        return mrinufft.get_operator("finufft")(trajectory, shape=(H, W), **options)


def _numpy_flip(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy()[..., ::-1].copy())


EXACT: dict[str, tuple[tuple[str, ...], Callable[[], LinearOperator]]] = {
    "callables-numpy": ((), lambda: from_callables(_numpy_flip, _numpy_flip, SHAPE, SHAPE, check=True)),
    "callables-derived": ((), lambda: from_callables(lambda x: x[..., ::2] * 3, None, SHAPE, (1, H, 3), check=True)),
    "callables-sums": ((), lambda: from_callables(lambda x: 2.0 * x.sum(-1), None, SHAPE, (1, H), check=True)),
    "scipy-csr": (("scipy",), lambda: from_scipy(random_sparse(20, 30), SHAPE, (4, 5))),
    "scipy-coo": (("scipy",), lambda: from_scipy(random_sparse(40, 30).tocoo(), SHAPE, (40,))),
    "scipy-dense": (("scipy",), lambda: from_scipy(random_sparse(7, 30).toarray(), SHAPE, (7,), check=True)),
    "scipy-operator": (("scipy",), _scipy_operator),
    **{
        f"pylops-{name}": (("pylops",), lambda name=name: _pylops(name))  # type: ignore[misc]
        for name in ("derivative", "convolution", "stack", "gradient", "composition")
    },
    **{
        f"odl-{name}": (("odl",), lambda name=name: _odl(name))  # type: ignore[misc]
        for name in (
            *(
                "gradient",
                "gradient-weighted-product",
                "gradient-in-torch",
                "laplacian",
                "resampling-of-cells",
                "cells-to-weights",
            ),
            *("matrix-ignores-weights", "broadcast"),
        )
    },
    **{
        f"astra-{kind}": (("astra",), lambda kind=kind: _astra(kind))  # type: ignore[misc]
        for kind in ("line", "strip", "linear", "line_fanflat", "strip_fanflat")
    },
    "odl-ray-assembled": (("odl", "astra"), lambda: from_odl(ray_transform(), assembled=True)),
    "deepinv-assembled": ((), lambda: assemble(from_deepinv(Physics(), SHAPE))),
    "sigpy": (("sigpy",), lambda: from_sigpy(sigpy_sense())),
    "mrpro": ((), lambda: from_mrpro(CoilsThenFourier(), (2, H, W))),
    "deepinv-double": ((), lambda: from_deepinv(Physics().double(), SHAPE)),
}
"""Adjoints exact in float64."""

SINGLE: dict[str, tuple[tuple[str, ...], Callable[[], LinearOperator]]] = {
    "deepinv-float32": ((), lambda: from_deepinv(Physics(), SHAPE)),
    "scipy-float32": (
        ("scipy",),
        lambda: from_scipy(random_sparse(7, 30, "float32").toarray(), SHAPE, (7,), check=True),
    ),
    "mrinufft": (("mrinufft", "finufft"), lambda: from_mrinufft(mrinufft_operator())),
    "odl-ray": (("odl", "astra"), lambda: from_odl(ray_transform())),
}
"""Computed in float32 whatever the input."""

STUCK = {
    "pickled": {
        *("callables-derived", "callables-sums", "odl-ray", "mrinufft", "odl-matrix-ignores-weights"),
        *("odl-resampling-of-cells", "odl-cells-to-weights"),
    },
    "copied": {"odl-matrix-ignores-weights"},
}
"""What neither this nor any library can pickle or copy."""
