"""Forward and adjoint of learnreg's projectors against ODL's RayTransform on the CPU, one thread, float32.

The same rays, interpolation kernel and units for both; ODL runs each image of a batch on its own, as it must. The cache
of matrices is a temporary folder, so that the first build is one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Table, arguments, finish, interleave
from torch import Tensor

from learnreg.operators import FanBeam2D, ParallelBeam2D

Projector = ParallelBeam2D | FanBeam2D

SCANS: tuple[tuple[str, int, int], ...] = (
    ("parallel", 128, 180),
    ("parallel", 256, 180),
    ("parallel", 512, 360),
    ("fan", 256, 180),
)
BATCHES = (1, 8)
STREAM = 64 * 1024**2
BYTES_PER_ENTRY = 8


def build(kind: str, n: int, angles: int, symmetry: Any = "auto") -> Projector:
    projector = FanBeam2D if kind == "fan" else ParallelBeam2D
    return projector(n, angles, symmetry=symmetry)


def odl_pair(A: Projector) -> tuple[Callable[[Any], Any], Callable[[Any], Any]] | None:
    """ODL's projector with A's rays on one image and one sinogram (NumPy), and its Euclidean adjoint; None without."""
    if importlib.util.find_spec("odl") is None:
        return None
    odl, tomo = importlib.import_module("odl"), importlib.import_module("odl.applications.tomo")
    np.set_printoptions(legacy=False)
    n, geometry = A.geometry.image_size, A.geometry
    space = odl.uniform_discr([-0.5, -0.5], [0.5, 0.5], [n, n], dtype="float32")
    step = geometry.full_turn / len(geometry.angles)
    views = odl.uniform_partition(-0.5 * step, geometry.full_turn - 0.5 * step, len(geometry.angles))
    half = 0.5 * geometry.detectors * geometry.detector_pitch
    detector = odl.uniform_partition(-half, half, geometry.detectors)
    if isinstance(A, FanBeam2D):
        behind = A.geometry.source_to_detector - A.geometry.source_to_center
        scan = tomo.FanBeamGeometry(views, detector, A.geometry.source_to_center, behind)
    else:
        scan = tomo.Parallel2dGeometry(views, detector)
    transform = tomo.RayTransform(space, scan, impl="astra_cpu")
    factor = transform.range.weighting.const / transform.domain.weighting.const
    return transform, lambda y: transform.adjoint(y) / factor


def odl_batch(pair: tuple[Callable[[Any], Any], Callable[[Any], Any]], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A x and A^T y, image by image; ODL's first axis points right and its second up."""
    transform, adjoint = pair
    images = [transform.domain.element(np.rot90(image[0].numpy(), -1).copy()) for image in x]
    forward = [np.asarray(transform(image).data) for image in images]
    back = [np.rot90(np.asarray(adjoint(transform.range.element(views[0].numpy())).data)) for views in y]
    return torch.from_numpy(np.stack(forward)[:, None]), torch.from_numpy(np.stack(back)[:, None].copy())


@torch.no_grad()
def learnreg_batch(A: Projector, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return A(x), A.adjoint(y)


def difference(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(first, second, strict=True))


def rows_of(kind: str, n: int, angles: int, rounds: int, stream: Tensor) -> list[dict[str, Any]]:
    began = time.perf_counter()
    A = build(kind, n, angles)
    first = time.perf_counter() - began
    began = time.perf_counter()
    build(kind, n, angles)
    cached = time.perf_counter() - began
    whole, pair = build(kind, n, angles, "none"), odl_pair(A)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for batch in BATCHES:
        x = torch.rand(batch, *A.domain_shape, generator=generator)
        y = torch.rand(batch, *A.range_shape, generator=generator)
        methods: dict[str, Callable[[], Any]] = {
            "symmetric": partial(learnreg_batch, A, x, y),
            "whole": partial(learnreg_batch, whole, x, y),
            "read": stream.sum,
        }
        if pair is not None:
            methods["odl"] = partial(odl_batch, pair, x, y)
        seconds = interleave(methods, rounds, 1, 0.2)
        speed = stream.nbytes / seconds.pop("read")
        seconds = {name: value / batch for name, value in seconds.items()}
        limit = 2 * BYTES_PER_ENTRY * whole.engine.entries / speed
        row: dict[str, Any] = {
            "scan": f"{kind} {n}², {angles} angles",
            "batch": batch,
            "learnreg, ms": 1e3 * seconds["symmetric"],
            "all rows, ms": 1e3 * seconds["whole"],
            "ODL, ms": 1e3 * seconds["odl"] if pair is not None else None,
            "times faster": seconds["odl"] / seconds["symmetric"] if pair is not None else None,
            "difference": f"{difference(learnreg_batch(A, x, y), odl_batch(pair, x, y)):.0e}" if pair else None,
            "GB/s": speed / 1e9,
            "limit of all rows, ms": 1e3 * limit,
            "all rows: share of the limit": limit / seconds["whole"],
            "MB": A.nbytes / 1e6,
            "MB, all rows": whole.nbytes / 1e6,
        }
        if batch == BATCHES[0]:
            row |= {"first build, s": first, "from the cache, s": cached}
        rows.append(row)
    return rows


def main() -> None:
    small = {"SCANS": (("parallel", 32, 20), ("fan", 32, 20)), "BATCHES": (1,), "STREAM": 2**20}
    options = arguments(
        __doc__ or "", quick=small, scans={"type": int, "default": len(SCANS), "help": "only the first of them"}
    )
    stream = torch.ones(STREAM)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LEARNREG_CACHE"] = folder
        build("parallel", 16, 8)  # imports and first calls
        rows = [row for scan in SCANS[: options.scans] for row in rows_of(*scan, options.rounds, stream)]
    table = Table(
        "projectors",
        "Projectors of tomography",
        "python benchmarks/projectors.py --record",
        "Milliseconds per image of one forward and one adjoint call, float32, random images; detectors at the pitch "
        "of a pixel, as many as the default. *learnreg*: a stored row serves up to eight rays; *all rows*: no symmetry "
        '(`symmetry="none"`). *ODL*: RayTransform(impl="astra_cpu") on the same rays, image by image. *difference*: '
        "larger relative 2-norm distance of the two results; fan rays along a line of the grid are given to the pixels "
        "of either side. *limit*: 8 bytes for each entry of A and of A^T at the speed (GB/s) of summing a large "
        "tensor, which takes turns with the rest; a batch reads entries once for many images, symmetry an eighth. "
        "*first build* and *from the cache* are wall-clock seconds of the constructor.",
        rows,
        order=40,
    )
    for row in rows:
        if row["times faster"] is not None:
            table.tracked[f"learnreg / ODL, {row['scan']}, batch {row['batch']}"] = 1.0 / row["times faster"]
    finish(table, options)


if __name__ == "__main__":
    main()
