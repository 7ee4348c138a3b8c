"""What projectors refuse, and of which scans they warn."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import learnreg as lr
from learnreg.operators import FanBeam2D, ParallelBeam2D
from learnreg.operators.tomography.ray_tracing import RayTracing

pytest.importorskip("astra")


@pytest.mark.parametrize("projector", [ParallelBeam2D, FanBeam2D])
def test_wrong_arguments(projector: Any) -> None:
    for angles in (0, -3, torch.zeros(0), []):
        with pytest.raises(lr.ConfigError, match="expected at least one"):
            projector(8, angles)
    with pytest.raises(lr.ShapeError, match=r"\(2, 2\), expected a number of them or 1-D radians"):
        projector(8, torch.zeros(2, 2))
    with pytest.raises(lr.ConfigError, match="NaN"):
        projector(8, torch.tensor([0.0, math.nan]))
    for size in (0, -1, 2.5, True, (8, 8)):
        with pytest.raises(lr.ConfigError, match="positive integer"):
            projector(size, 4)
    assert projector(np.int64(8), np.int64(4), np.int64(23)).range_shape == (1, 4, 23)
    for detectors in (0, 3.5, 10**9):
        with pytest.raises(lr.ConfigError, match="detectors"):
            projector(8, 4, detectors)
    with pytest.raises(lr.ConfigError, match="symmetry='some'"):
        projector(8, 4, symmetry="some")
    with pytest.raises(lr.ConfigError, match="backend='gpu'"):
        projector(8, 4, backend="gpu")
    with pytest.raises(lr.ConfigError, match="'line' or 'strip'"):
        projector(8, 4, kernel="cubic")
    other = FanBeam2D(8, 4).geometry if projector is ParallelBeam2D else ParallelBeam2D(8, 4).geometry
    with pytest.raises(lr.ConfigError, match=rf"expected {projector.geometry_class.__name__}"):
        projector.from_geometry(other)


def test_wrong_tensors() -> None:
    A = ParallelBeam2D(8, 4)
    with pytest.raises(lr.ShapeError, match=r"expected \(batch, 1, 8, 8\)"):
        A(torch.zeros(2, 1, 8, 9))
    with pytest.raises(lr.ShapeError, match=r"Add a batch axis with tensor\[None\]"):
        A(torch.zeros(1, 8, 8))
    with pytest.raises(lr.ShapeError, match="17 detectors, the geometry 13"):
        A.adjoint(torch.zeros(1, 1, 4, 17))
    with pytest.raises(lr.ShapeError, match="5 angles, the geometry 4"):
        A.adjoint(torch.zeros(1, 1, 5, 13))


def test_arrays_are_no_tensors() -> None:
    A = ParallelBeam2D(8, 4)
    for apply, shape in ((A, A.domain_shape), (A.adjoint, A.range_shape)):
        with pytest.raises(lr.ShapeError, match=r"got ndarray.*torch\.from_numpy"):
            apply(np.zeros((1, *shape)))


def test_suspicious_scans_warn() -> None:
    with pytest.warns(UserWarning, match=r"largest angle is 179, which looks like degrees.*torch\.deg2rad\(angles\)"):
        ParallelBeam2D(8, torch.tensor([0.0, 90.0, 179.0]))
    with pytest.warns(
        UserWarning, match=r"too narrow for the image.*truncated\. 9 detectors see the disc.*13 all of it"
    ):
        ParallelBeam2D(8, 4, 5)
    with pytest.warns(UserWarning, match="too narrow for the image") as caught:
        FanBeam2D(16, 4, 23)
    count = int(str(caught[0].message).rpartition("image, ")[2].split()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        everything = FanBeam2D(16, 4, count)
        assert everything.geometry.visible_radius >= math.sqrt(0.5)
        ParallelBeam2D(8, torch.tensor([-math.pi, math.pi, 2 * math.pi]), 9)


def test_astra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "astra", None)
    with pytest.raises(lr.ConfigError, match=r"the ASTRA toolbox.*pip install 'learnreg\[ct\]'"):
        ParallelBeam2D(8, 4, backend="matrix")
    assert isinstance(ParallelBeam2D(8, 4).engine, RayTracing)
