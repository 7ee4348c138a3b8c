"""Magnetic resonance imaging from a quarter of the lines of k-space: learned complex experts against total variation.

    python benchmarks/mri.py [--minutes 8] [--record]

Phantoms, and slices of the brain template that nilearn ships (left out where nilearn and nibabel are missing); phases
and coils are synthetic.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial
from typing import Any

import torch
from harness import Table, arguments, finish
from torch import Tensor

import learnreg as lr
from learnreg.commands.kspace_scenes import kspace_scenes
from learnreg.commands.process import large_blocks_kept
from learnreg.datasets import (
    GaussianNoise,
    KSpacePairs,
    cartesian_mask,
    ellipse_phantom,
    resize_slice,
    simulate_coil_maps,
    with_smooth_phase,
)
from learnreg.operators import CartesianMRI
from learnreg.regularizers import FieldsOfExperts, Regularizer, TotalVariation
from learnreg.report.comparison import Scene, magnitude, quality
from learnreg.solvers.solve import solve
from learnreg.training.baseline import tune_total_variation

SIDE, TRAINING, HELD_OUT, SIGMA, RIDGE = 96, 24, 4, 0.01, 1e-3
FILTERS, SIZE, TOLERANCE, TUNED = 16, 5, 2e-3, 4
ACCELERATIONS = ((4, 1), (8, 8))


def phantoms() -> tuple[list[Tensor], list[Tensor]]:
    training = [ellipse_phantom(i, SIDE) for i in range(TRAINING)]
    return training, [ellipse_phantom(i, SIDE, held_out=True) for i in range(HELD_OUT)]


def brain() -> tuple[list[Tensor], list[Tensor]] | None:
    """Axial slices of the template from below and above, those in the middle held out; None without its package."""
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError:
        print("brain template: left out, nilearn or nibabel is not installed", file=sys.stderr)
        return None
    volume = torch.from_numpy(load_mni152_template(resolution=2).get_fdata()).float()
    volume = (volume / volume.max()).clamp(0.0, 1.0)
    slices = [resize_slice(volume[:, :, k].T.flip(0)[None], SIDE) for k in range(12, volume.shape[2] - 16)]
    middle = range(len(slices) // 2 - 2 * HELD_OUT, len(slices) // 2 + 2 * HELD_OUT)
    near = {k for m in middle for k in (m - 2, m - 1, m, m + 1, m + 2)}
    training = [image for k, image in enumerate(slices) if k not in near][:TRAINING]
    return training, [slices[k] for k in list(middle)[::4][:HELD_OUT]]


def row(name: str, R: Regularizer, operator: CartesianMRI, scenes: list[Scene], updates: int | str) -> dict[str, Any]:
    problem = lr.LowerLevelProblem(operator, R, ridge=RIDGE)
    psnr, before, bounds, seconds, certified = [], [], [], [], True
    for scene in scenes:
        began = time.process_time()
        found = solve(problem, scene.b[None], TOLERANCE)
        seconds.append(time.process_time() - began)
        psnr.append(quality(magnitude(found.x[0]), magnitude(scene.clean)).psnr)
        before.append(quality(magnitude(scene.input), magnitude(scene.clean)).psnr)
        bounds.append(float(found.error_bound))
        certified &= found.certified
    return {
        "regularizer": name,
        "updates": updates,
        "zero-filled [dB]": round(statistics.fmean(before), 2),
        "PSNR [dB]": round(statistics.fmean(psnr), 2),
        "largest bound": max(bounds),
        "certified": certified,
        "CPU s/image": round(statistics.fmean(seconds), 2),
    }


def rows(
    images: tuple[list[Tensor], list[Tensor]], source: str, minutes: float, accelerations: list[int]
) -> list[dict[str, Any]]:
    training, held_out = ([with_smooth_phase(x, i) for i, x in enumerate(part)] for part in images)
    found = []
    for acceleration, coils in ACCELERATIONS:
        if acceleration not in accelerations:
            continue
        mask = cartesian_mask(SIDE, acceleration, 0.08, generator=torch.Generator().manual_seed(0))
        maps = None if coils == 1 else simulate_coil_maps(coils, SIDE, SIDE)
        operator, noise = CartesianMRI(mask, maps, (2, SIDE, SIDE)), GaussianNoise(SIGMA)
        pairs = KSpacePairs(operator, training, noise)
        scenes = list(kspace_scenes(operator, ((str(i), x) for i, x in enumerate(held_out)), noise, seed=1))
        measure = partial(row, operator=operator, scenes=scenes)
        tv = TotalVariation(3e-3, channels=2, coupling="complex")
        tune_total_variation(lr.LowerLevelProblem(operator, tv, ridge=RIDGE), pairs, TUNED, 1e-2)
        torch.manual_seed(0)
        experts = FieldsOfExperts(
            FILTERS, SIZE, lr.PseudoHuber(5e-3, 2e-2), minimum_smoothing=2e-3, channels=2, coupling="complex"
        )
        problem = lr.LowerLevelProblem(operator, experts, ridge=RIDGE)
        updates = lr.train(problem, pairs, minutes=minutes, batch_size=4).updates
        for name, R, count in (("total variation", tv, ""), ("experts", experts, updates)):
            entry = {"images": source, "acceleration": acceleration, "coils": coils, **measure(name, R, updates=count)}
            print(entry, file=sys.stderr, flush=True)
            found.append(entry)
    return found


@large_blocks_kept()
def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={
            "minutes": 0.02, "SIDE": 16, "TRAINING": 3, "HELD_OUT": 1, "FILTERS": 3, "SIZE": 3, "TUNED": 1,
            "ACCELERATIONS": ((4, 1),), "RIDGE": 0.05,
        },
        minutes={"type": float, "default": 8.0, "help": "training of each field of experts"},
        accelerations={"nargs": "*", "type": int, "default": [4, 8], "help": "4, with one coil, and 8, with eight"},
    )  # fmt: skip
    table = Table(
        name="mri",
        order=12,
        title="Magnetic resonance imaging",
        command="python benchmarks/mri.py --record",
        text=f"""Complex images of {SIDE}² pixels from random lines of k-space (all of the middle 8 %), noise {SIGMA:g}
of magnitudes in [0, 1], ridge {RIDGE:g}; {FILTERS} filters {SIZE}x{SIZE} on the modulus of both responses, learned for
{options.minutes:g} minutes on {TRAINING} images, against total variation tuned on {TUNED} of them. Means of {HELD_OUT}
held-out images, PSNR of magnitudes. Phases and coils are synthetic; the brain is the MNI152 template, whose held-out
slices are at least 6 mm from those learned from.""",
    )
    for source, images in (("phantoms", phantoms()), ("brain template", brain())):
        if images is not None:
            table.rows.extend(rows(images, source, options.minutes, options.accelerations))
    finish(table, options, ("images", "acceleration", "regularizer"))


if __name__ == "__main__":
    main()
