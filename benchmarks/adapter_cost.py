"""What adapting costs: an application through the adapter against the library's own, milliseconds per image.

    python benchmarks/adapter_cost.py [--size 256] [--angles 180]

Needs odl, astra-toolbox and pylops. One thread, best of several; prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import astra
import numpy as np
import odl
import pylops
import torch
from odl.applications import tomo

from learnreg.operators import from_astra, from_callables, from_odl, from_pylops


def milliseconds(call: Callable[[], Any], repeats: int = 5) -> float:
    call()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def odl_rows(n: int, angles: int) -> list[tuple[str, float, float]]:
    space = odl.uniform_discr([-1, -1], [1, 1], (n, n), dtype="float32")
    ray = tomo.RayTransform(space, tomo.parallel_beam_geometry(space, num_angles=angles), impl="astra_cpu")
    start = time.perf_counter()
    A = from_odl(ray)
    print(f"from_odl with all checks: {time.perf_counter() - start:.1f} s")
    x = torch.rand(1, 1, n, n)
    y, element = A(x), space.element(x[0, 0].numpy())
    sinogram = ray(element)
    return [
        ("ODL RayTransform, forward", milliseconds(lambda: ray(element)), milliseconds(lambda: A(x))),
        ("ODL RayTransform, adjoint", milliseconds(lambda: ray.adjoint(sinogram)), milliseconds(lambda: A.adjoint(y))),
    ]


def astra_rows(n: int, angles: int) -> list[tuple[str, float, float]]:
    detectors = int(1.42 * n) | 1
    geometry = astra.create_proj_geom("parallel", 1.0, detectors, np.linspace(0, np.pi, angles, False))
    projector = astra.create_projector("linear", geometry, astra.create_vol_geom(n, n))
    start = time.perf_counter()
    A = from_astra(projector)
    print(f"from_astra: {A.values.numel():,} nonzeros in {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    print(f"norm bound {A.norm_bound():.2f}, {A.norm_bound_kind}, in {time.perf_counter() - start:.1f} s")
    direct, x = astra.OpTomo(projector), torch.rand(8, 1, n, n)
    y = A(x)
    image, sinogram = x[0, 0].numpy(), y[0, 0].numpy()
    forward, adjoint = milliseconds(lambda: direct.FP(image)), milliseconds(lambda: direct.BP(sinogram))
    return [
        ("ASTRA matrix, forward, one image", forward, milliseconds(lambda: A(x[:1]))),
        ("ASTRA matrix, adjoint, one image", adjoint, milliseconds(lambda: A.adjoint(y[:1]))),
        ("ASTRA matrix, forward, batch of 8", forward, milliseconds(lambda: A(x)) / 8),
        ("ASTRA matrix, adjoint, batch of 8", adjoint, milliseconds(lambda: A.adjoint(y)) / 8),
    ]


def cheap_rows(n: int) -> list[tuple[str, float, float]]:
    derivative = pylops.FirstDerivative((n, n), axis=0)
    A, x = from_pylops(derivative), torch.rand(1, 1, n, n, dtype=torch.float64)
    vector = x.numpy().ravel()
    flip = from_callables(lambda x: x.flip(-1), lambda y: y.flip(-1), (1, n, n), (1, n, n))
    return [
        ("PyLops FirstDerivative", milliseconds(lambda: derivative.matvec(vector), 50), milliseconds(lambda: A(x), 50)),
        ("a torch function (flip)", milliseconds(lambda: x.flip(-1), 200), milliseconds(lambda: flip(x), 200)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--angles", type=int, default=180)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # of ODL, that its CPU back end is slow
    rows = odl_rows(options.size, options.angles) + astra_rows(options.size, options.angles) + cheap_rows(options.size)
    print("\n| milliseconds per image | library | adapter |\n|---|---|---|")
    for name, library, adapter in rows:
        print(f"| {name} | {library:.3g} | {adapter:.3g} |")


if __name__ == "__main__":
    main()
