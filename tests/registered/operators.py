"""Every public operator."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from registered.randomness import SHAPE, rand, randn
from registered.regularizers import bank, network
from torch import Tensor, nn

import learnreg as lr
from learnreg.convolutions.chain import ConvolutionChain
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.gradient import Gradient
from learnreg.convolutions.grouped_filter_bank import GroupedFilterBank
from learnreg.convolutions.lifted import LiftedOperator
from learnreg.convolutions.second_order import SecondOrderOperator
from learnreg.linear.identity import Unchanged
from learnreg.linear.operator import LinearOperator
from learnreg.linear.stack import Stack
from learnreg.lower_level.latent import JointOperator
from learnreg.operators import (
    Blur,
    CartesianMRI,
    ConeBeam3D,
    FanBeam2D,
    FanGeometry,
    FourierSampling,
    Identity,
    Inpainting,
    ParallelBeam2D,
    ParallelGeometry,
    assemble,
    from_callables,
)
from learnreg.operators.tomography.geometry import Geometry

__all__ = ["HAS_ASTRA", "OPERATORS", "delta"]


OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "Identity": lambda: Identity(SHAPE),
    "Unchanged": lambda: Unchanged(SHAPE),
    "Stack": lambda: Stack([bank("zero", 3, 3), Gradient(SHAPE), bank("valid", 2, 2)]),
    "Inpainting": lambda: Inpainting((rand(*SHAPE) > 0.4).double()),
    "Inpainting-weights": lambda: Inpainting(0.1 + randn(*SHAPE)),
    "Blur-zero": lambda: Blur(nn.Parameter(rand(3, 3)), SHAPE),
    "Blur-zero-even-signed": lambda: Blur(randn(2, 4), SHAPE),
    "Blur-circular": lambda: Blur(nn.Parameter(rand(3, 3) / 9), SHAPE, "circular"),
    "Blur-circular-dominant": lambda: Blur(torch.eye(3, dtype=torch.float64) * 0.1 + delta(3), SHAPE, "circular"),
    "Blur-circular-larger-than-image": lambda: Blur(randn(6, 7), SHAPE, "circular"),
    "Blur-reflect": lambda: Blur(nn.Parameter(rand(3, 2)), SHAPE, "reflect"),
    "Blur-reflect-signed": lambda: Blur(randn(5, 5), SHAPE, "reflect"),
    "Blur-channels": lambda: Blur(nn.Parameter(randn(3, 3)), (2, 4, 5), "reflect"),
    **{
        f"FilterBank-{boundary}-{k}x{l}": lambda boundary=boundary, k=k, l=l: bank(boundary, k, l)  # type: ignore[misc]
        for boundary in ("valid", "zero", "circular", "reflect", "replicate")
        for k, l in ((3, 3), (2, 4), (1, 1), (5, 3))
    },
    **{
        f"GroupedFilterBank-{boundary}": lambda boundary=boundary: GroupedFilterBank(  # type: ignore[misc]
            randn(2, 3, 3, 2, seed=9), SHAPE, boundary
        )
        for boundary in ("valid", "zero", "circular", "reflect", "replicate")
    },
    "GroupedFilterBank-circular-larger": lambda: GroupedFilterBank(randn(3, 2, 6, 8, seed=9), SHAPE, "circular"),
    "FilterBank-as-large-as-the-image": lambda: bank("valid", 5, 6),
    "FilterBank-circular-larger": lambda: bank("circular", 7, 8),
    **{
        f"FilterBank-{name}-{boundary}": lambda filters=filters, shape=shape, boundary=boundary: FilterBank(  # type: ignore[misc]
            nn.Parameter(randn(*filters, seed=9)), shape, boundary
        )
        for name, filters, shape in (
            ("colours", (3, 3, 3, 2), (3, 5, 4)),
            ("each-channel", (3, 3, 2), (2, 5, 4)),
            ("signals", (3, 4), (1, 9)),
            ("signals-across", (3, 2, 3), (2, 7)),
            ("volumes", (2, 3, 2, 2), (1, 4, 3, 3)),
            ("volumes-across", (2, 2, 2, 3, 2), (2, 3, 4, 3)),
        )
        for boundary in ("valid", "circular", "reflect")
    },
    "GroupedFilterBank-over-channels": lambda: GroupedFilterBank(
        randn(2, 3, 3, 2, seed=9), (2, 5, 4), "reflect", over_channels=True
    ),
    "GroupedFilterBank-colours": lambda: GroupedFilterBank(randn(2, 3, 3, 3, 2, seed=9), (3, 5, 4), "zero"),
    "GroupedFilterBank-volumes": lambda: GroupedFilterBank(
        randn(1, 3, 2, 2, 2, seed=9), (2, 3, 4, 3), over_channels=True
    ),
    "ConvolutionChain": lambda: ConvolutionChain([randn(2, 1, 3, 3), randn(3, 2, 5, 3)], SHAPE),
    "ConvolutionChain-one-row": lambda: ConvolutionChain([randn(2, 1, 3, 3), randn(1, 2, 3, 3)], (1, 1, 7)),
    "Gradient": lambda: Gradient(SHAPE),
    "Gradient-one-row": lambda: Gradient((1, 1, 7)),
    "Gradient-colours": lambda: Gradient((3, 4, 5)),
    "Gradient-over-channels": lambda: Gradient((2, 4, 5), over_channels=True),
    "Gradient-signals": lambda: Gradient((1, 7)),
    "Gradient-volumes": lambda: Gradient((2, 3, 4, 3), over_channels=True),
    "FourierSampling": lambda: FourierSampling(rand(5, 6) > 0.4),
    "FourierSampling-weights": lambda: FourierSampling(nn.Parameter(0.2 + randn(5, 6)), SHAPE),
    "FourierSampling-complex": lambda: FourierSampling(nn.Parameter(1 + rand(6, 4)), (2, 6, 4)),
    "CartesianMRI": lambda: CartesianMRI(nn.Parameter(0.2 + randn(5, 6))),
    "CartesianMRI-lines": lambda: CartesianMRI(nn.Parameter(randn(4)), domain_shape=(2, 5, 4)),
    "CartesianMRI-coils": lambda: CartesianMRI(rand(4, 5) > 0.4, _coils(3, 4, 5)),
    "CartesianMRI-coils-lines": lambda: CartesianMRI(nn.Parameter(rand(4)), _coils(2, 3, 4)),
    "BlackBox": lambda: from_callables(_cumulate, _cumulate_back, SHAPE, SHAPE),
    "BlackBox-derived-adjoint": lambda: from_callables(lambda x: x.cumsum(-1)[:, 0], None, SHAPE, (5, 6)),
    "SparseOperator": lambda: assemble(Blur(randn(3, 3), SHAPE)),
    "SparseOperator-more-rows": lambda: assemble(lr.vstack(Identity(SHAPE), Gradient(SHAPE))),
    "LiftedOperator": lambda: LiftedOperator(randn(2, 3, 3, 3, seed=1), rand(1, 3, 3, 3, 3, seed=2), SHAPE, 1.7),
    "LiftedOperator-one-layer": lambda: LiftedOperator(randn(1, 3, 2, 2, seed=1), rand(0, 3, 3, 1, 1, seed=2), SHAPE),
    "SecondOrderOperator": lambda: _second_order("replicate", 1.7),
    "SecondOrderOperator-valid": lambda: _second_order("valid", 0.4),
    "JointOperator": lambda: _joint(Blur(rand(3, 3), SHAPE)),
    "Adjoint": lambda: bank("reflect", 3, 3).T,
    "Scaled": lambda: -2.5 * bank("valid", 3, 3),
    "Composition": lambda: bank("zero", 3, 3) @ Blur(rand(3, 3), SHAPE, "circular"),
    "Composition-circular": lambda: Blur(delta(3) + 0.1 * rand(3, 3), SHAPE, "circular") @ Inpainting(1 + rand(*SHAPE)),
    "Sum": lambda: Identity(SHAPE) - Blur(randn(3, 3), SHAPE, "reflect"),
    "ParallelBeam2D-matrix-free": lambda: ParallelBeam2D(5, 8, backend="matrix-free"),
    "ParallelBeam2D-matrix-free-odd": lambda: ParallelBeam2D(6, 3, 7, kernel="line", backend="matrix-free"),
    "FanBeam2D-matrix-free": lambda: FanBeam2D(5, 3, 14, kernel="linear", backend="matrix-free"),
    "FanBeam2D-matrix-free-curved": lambda: FanBeam2D.from_geometry(
        _geometry(FanGeometry, detector_shape="curved", image_center=(0.1, -0.2), dead_detectors=(0, 6)),
        backend="matrix-free",
    ),
    "ConeBeam3D": lambda: ConeBeam3D(4, 3, (5, 9)),
    "VStack": lambda: lr.vstack(Identity(SHAPE), Gradient(SHAPE), bank("valid", 3, 2)),
}


def _coils(*shape: int) -> Tensor:
    return torch.complex(randn(*shape, seed=31), randn(*shape, seed=32))


HAS_ASTRA = find_spec("astra") is not None

if HAS_ASTRA:  # square images
    OPERATORS |= {
        "ParallelBeam2D": lambda: ParallelBeam2D(6, 5),
        "ParallelBeam2D-symmetric": lambda: ParallelBeam2D(5, 8),
        "ParallelBeam2D-all-rows": lambda: ParallelBeam2D(5, 6, 9, kernel="line", symmetry="none"),
        "FanBeam2D": lambda: FanBeam2D(5, torch.tensor([0.3, 1.0, 2.0, 4.0]), 14),
        "FanBeam2D-symmetric": lambda: FanBeam2D(6, 8, kernel="strip"),
        "FanBeam2D-curved": lambda: FanBeam2D.from_geometry(_geometry(FanGeometry, detector_shape="curved")),
        "FanBeam2D-off-axis-dead": lambda: FanBeam2D.from_geometry(
            _geometry(FanGeometry, image_center=(0.1, -0.2), dead_detectors=(0, 6, 7))
        ),
        "ParallelBeam2D-off-axis": lambda: ParallelBeam2D.from_geometry(
            _geometry(ParallelGeometry, image_center=(-0.1, 0.2))
        ),
        "ParallelBeam2D-dead": lambda: ParallelBeam2D.from_geometry(_geometry(ParallelGeometry, dead_detectors=(2, 8))),
    }


def _geometry(kind: type[Geometry], **options: Any) -> Geometry:
    lengths = {"source_to_center": 2.0, "source_to_detector": 3.0} if kind is FanGeometry else {}
    angles = tuple(kind.full_turn * k / 8 for k in range(8))
    sizes = {"image_size": 5, "detectors": 13, "pixel_size": 0.2, "detector_pitch": 0.2}
    return kind(angles=angles, **sizes, **lengths, **options)


def _second_order(boundary: str, scale: float) -> SecondOrderOperator:
    filters = (randn(2, groups, 3, 3, seed=i) for i, groups in enumerate((3, 3, 2, 2)))
    return SecondOrderOperator(*filters, SHAPE, boundary, scale)  # type: ignore[arg-type]


def _joint(operator: LinearOperator) -> JointOperator:
    latent = network(form="lifted").saddle_terms(SHAPE).latent
    return JointOperator(operator, latent, 0.8)


def _cumulate(x: Tensor) -> Tensor:
    return torch.from_numpy(np.cumsum(x.numpy(), axis=-1))


def _cumulate_back(y: Tensor) -> Tensor:
    return torch.from_numpy(np.cumsum(y.numpy()[..., ::-1], axis=-1)[..., ::-1].copy())


def delta(k: int) -> Tensor:
    kernel = torch.zeros(k, k, dtype=torch.float64)
    kernel[k // 2, k // 2] = 1.0
    return kernel
