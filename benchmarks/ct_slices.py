"""Real CT slices from few views: filtered back-projection, total variation, and learned regularizers.

    learnreg train ct --data DIR/CT/train --size 256 --minutes 30 --set images=85 --out RUN
    python benchmarks/ct_slices.py --data DIR --model RUN/model.safetensors --record

DIR holds CT/train, CT/validation and hard_foe.npz. ``--picture FILE`` draws the first slice.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from harness import Table, arguments, finish
from torch import Tensor

import learnreg as lr
from learnreg.commands.scenes import measured_scenes, noise_model
from learnreg.datasets import PhotonNoise, list_images, read_image, resize_slice
from learnreg.operators import ParallelBeam2D
from learnreg.regularizers import FieldsOfExperts, Regularizer, Scaled, TotalVariation
from learnreg.report.comparison import Scene, quality

SIZE, VIEWS, NOISE, SEED, TUNING_SEED, TOLERANCE = 256, 60, 0.01, 0, 77, 1e-3
TV_WEIGHTS = (1e-5, 1.6e-5, 2.5e-5, 4e-5, 6.3e-5, 1e-4, 1.6e-4)
FACTORS, TUNING_SLICES, TUNING_TOLERANCE = (1.5e-4, 3e-4, 6e-4, 1.2e-3), 3, 1e-2


def slices(operator: ParallelBeam2D, folder: Path, seed: int, count: int | None = None) -> list[Scene]:
    images = ((path.name, resize_slice(read_image(path), SIZE)) for path in list_images(folder)[:count])
    return list(measured_scenes(operator, images, noise_model(NOISE, 0.0, PhotonNoise().attenuation), seed))


def problem(operator: ParallelBeam2D, regularizer: Regularizer, ridge: float) -> lr.LowerLevelProblem:
    return lr.LowerLevelProblem(operator, regularizer, ridge=ridge, constraint=lr.Nonnegative())


def mean_psnr(p: lr.LowerLevelProblem, scenes: list[Scene]) -> float:
    found = (lr.solve(p, s.b[None], TUNING_TOLERANCE).x[0] for s in scenes)
    return fmean(quality(x, s.clean, s.name).psnr for x, s in zip(found, scenes, strict=True))


def measure(name: str, p: lr.LowerLevelProblem, scenes: list[Scene]) -> tuple[dict[str, Any], Tensor]:
    """A row of the table, and the first image."""
    began = time.process_time()
    found = [lr.solve(p, s.b[None], TOLERANCE) for s in scenes]
    seconds = (time.process_time() - began) / len(scenes)
    rows = [quality(f.x[0], s.clean, s.name) for f, s in zip(found, scenes, strict=True)]
    bounds = ", ".join(f"{float(f.error_bound):.1e}" for f in found)
    return {
        "reconstruction": name,
        "PSNR, dB": f"{fmean(r.psnr for r in rows):.2f}",
        "SSIM": f"{fmean(r.ssim for r in rows):.3f}",
        "applications": f"{fmean(f.operator_applications for f in found):.0f}",
        "CPU s per slice": seconds,
        "error bound of each": bounds if all(f.certified for f in found) else f"{bounds} (not all certified)",
    }, found[0].x[0]


def draw(images: dict[str, Tensor], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(images), figsize=(4 * len(images), 4.4))
    for axis, (name, image) in zip(axes, images.items(), strict=True):
        axis.imshow(image[0], cmap="gray", vmin=0.0, vmax=1.0)
        axis.set_title(name)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=70)


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"SIZE": 32, "VIEWS": 10, "TV_WEIGHTS": (1e-5,), "FACTORS": (3e-4,), "TUNING_SLICES": 1},
        data={"type": Path, "default": Path(os.environ.get("LEARNREG_DATA", "data")), "help": "CT and hard_foe.npz"},
        model={"type": Path, "required": True, "help": "model file of train ct"},
        picture={"type": Path, "help": "where to draw the first slice"},
    )
    operator = ParallelBeam2D(SIZE, VIEWS)
    model = lr.load(options.model)
    ridge = float(model.config["ridge"])
    scenes = slices(operator, options.data / "CT" / "validation", SEED)
    stored = np.load(options.data / "hard_foe.npz")
    denoiser = FieldsOfExperts.from_arrays(stored["filters"], stored["weights"], stored["smoothing"]).float()
    tuning = slices(operator, options.data / "CT" / "train", TUNING_SEED, TUNING_SLICES)
    factor = max(FACTORS, key=lambda f: mean_psnr(problem(operator, Scaled(denoiser, f), ridge), tuning))
    inputs = [quality(s.input, s.clean, s.name) for s in scenes]
    table = Table(
        "ct_slices",
        "Real CT slices from 60 views",
        "python benchmarks/ct_slices.py --data DIR --model RUN/model.safetensors --record",
        f"{len(scenes)} slices of {SIZE}², parallel beam, {VIEWS} views, {100 * NOISE:g} % noise, x >= 0, ridge "
        f"{ridge:g}, each slice alone to a certified root-mean-square error of {TOLERANCE:g}, float32, one thread. "
        "Learned: `learnreg train ct --data DIR/CT/train --size 256 --minutes 30 --set images=85`. From denoising: a "
        f"Field of Experts for noise 25/255 times {factor:g}, the best of {len(FACTORS)} factors on {TUNING_SLICES} "
        "training slices.",
        order=40,
    )
    table.rows.append(
        {
            "reconstruction": "filtered back-projection",
            "PSNR, dB": f"{fmean(q.psnr for q in inputs):.2f}",
            "SSIM": f"{fmean(q.ssim for q in inputs):.3f}",
        }
    )
    images = {"FBP": scenes[0].input}
    for weight in TV_WEIGHTS:
        found, _ = measure(f"total variation, {weight:g}", problem(operator, TotalVariation(weight), ridge), scenes)
        table.rows.append(found)
        print(found, file=sys.stderr, flush=True)
    for name, regularizer in (("learned", model.regularizer), ("from denoising", Scaled(denoiser, factor))):
        found, images[name] = measure(name, problem(operator, regularizer, ridge), scenes)
        table.rows.append(found)
        table.tracked[f"applications, {name}"] = float(found["applications"])
    images["clean"] = scenes[0].clean
    if options.picture:
        draw(images, options.picture)
    finish(table, options)


if __name__ == "__main__":
    main()
