"""ASTRA's projectors on a GPU, mostly in the absence of one."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.operators import ConeBeam3D, FanBeam2D, ParallelBeam2D
from learnreg.operators.tomography import astra_cuda
from learnreg.regularizers import TotalVariation

astra = pytest.importorskip("astra")


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU projectors under the names of CUDA's; three-dimensional ones are a random matrix, whose back-projection has
    another scale and an error."""
    matrix = registry.randn(3 * 2 * 3, 27).numpy()

    def project(array: Any, scan: Any, _: Any) -> tuple[int, Any]:
        assert scan["type"] == "cone"
        assert array.shape == (3, 3, 3)
        return 0, (matrix @ array.reshape(-1)).reshape(3, 2, 3).astype(np.float32)

    def back_project(array: Any, _: Any, __: Any) -> tuple[int, Any]:
        assert array.shape == (3, 2, 3)
        return 0, (1.7 * (matrix + 1e-3).T @ array.reshape(-1)).reshape(3, 3, 3).astype(np.float32)

    def projector(name: str, scan: Any, volume: Any) -> int:
        assert name == "cuda"
        return int(astra.create_projector("line_fanflat" if "fan" in scan["type"] else "linear", scan, volume))

    pretended = SimpleNamespace(
        use_cuda=lambda: True,
        create_projector=projector,
        create_sino3d_gpu=project,
        create_backprojection3d_gpu=back_project,
        data3d=SimpleNamespace(delete=lambda _: None),
        **{
            name: getattr(astra, name)
            for name in ("create_proj_geom", "create_vol_geom", "create_sino", "create_backprojection")
        },
        **{name: getattr(astra, name) for name in ("data2d", "projector")},
    )
    monkeypatch.setattr(astra_cuda, "require", lambda *_: pretended)


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize("projector", [ParallelBeam2D, FanBeam2D])
def test_astra_s_projector_on_a_gpu(projector: Any) -> None:
    A, expected = projector(7, 5, backend="astra-cuda"), projector(7, 5)
    x, y = registry.rand(2, *A.domain_shape), registry.rand(2, *A.range_shape)
    assert relative(A(x), expected(x)) < 1e-5
    assert relative(A.adjoint(y), expected.adjoint(y)) < 1e-5
    assert 0 < A.adjoint_mismatch() < 1e-4
    assert A.norm_bound() == pytest.approx(expected.norm_bound(), rel=0.05)
    assert A.nbytes == 0
    problem = lr.LowerLevelProblem(A, TotalVariation(0.1, 0.1).double(), ridge=0.1)
    assert lr.solve(problem, expected(x), 1e-2, max_steps=20).bound_kind == "estimate"
    assert torch.equal(pickle.loads(pickle.dumps(A))(x), A(x))


@pytest.mark.usefixtures("pretended_gpu")
def test_cone_beam_on_a_gpu() -> None:
    A = ConeBeam3D(3, 2, 3, backend="astra-cuda")
    x, y = registry.randn(2, *A.domain_shape), registry.randn(2, *A.range_shape, seed=1)
    assert A.range_shape == (1, 2, 3, 3)
    left, right = float((A(x) * y).sum()), float((x * A.adjoint(y)).sum())
    assert abs(left - right) < 0.05 * float(A(x).norm() * y.norm())
    assert 0 < A.adjoint_mismatch() < 0.05
    with pytest.raises(lr.ConfigError, match="sides of the cube"):
        ConeBeam3D(3, 2, source_to_center=0.5, backend="astra-cuda")


@pytest.mark.skipif(astra.use_cuda(), reason="there is a GPU")
def test_no_gpu_is_an_error_and_no_crash() -> None:
    for build in (lambda: ConeBeam3D(8, 4, backend="astra-cuda"), lambda: ParallelBeam2D(8, 4, backend="astra-cuda")):
        with pytest.raises(lr.OperatorError, match=r"needs an NVIDIA GPU.*astra\.use_cuda\(\) is False") as caught:
            build()
        assert caught.value.failed_property == "device"
