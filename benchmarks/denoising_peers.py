"""Denoisers of others on the images and the noise of "Learned regularizers on Set12".

    python benchmarks/denoising_peers.py --data DIR --record

DIR holds Set12, and BSDS500, on whose first training images settings are chosen. Rows of this library are those that
``learned_regularizers.py`` recorded; the noise of image i has the same seed. BM3D is left out where it is missing.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import RESULTS, Table, arguments, finish
from peers import bm3d_denoiser
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle
from torch import Tensor

from learnreg.datasets import BSDS500, add_noise, list_images, read_image
from learnreg.report.comparison import quality

SIGMA = 25 / 255
TUNED = 8
TV_WEIGHTS = (0.06, 0.08, 0.1, 0.12)
NLM_STRENGTHS = (0.5, 0.6, 0.8, 1.0)
OURS = ("total variation", "field of experts", "ridge, convex-nonconvex")
DNCNN = "30.44"
"""Not measured here: Zhang et al., IEEE Trans. Image Process. 26 (2017), table II."""
SECONDS = "CPU seconds per image"

Denoiser = Callable[[np.ndarray], np.ndarray]


def chambolle(weight: float, noisy: np.ndarray) -> np.ndarray:
    return denoise_tv_chambolle(noisy, weight=weight, eps=1e-5, max_num_iter=500)


def non_local_means(strength: float, noisy: np.ndarray) -> np.ndarray:
    return denoise_nl_means(
        noisy, patch_size=5, patch_distance=9, h=strength * SIGMA, sigma=SIGMA, fast_mode=True, preserve_range=True
    )


def measured(denoiser: Denoiser, images: list[Tensor]) -> tuple[float, float, float]:
    """Mean PSNR and SSIM, and CPU seconds for an image."""
    found, seconds = [], []
    for i, clean in enumerate(images):
        noisy, began = add_noise(clean, SIGMA, i)[0].double().numpy(), time.process_time()
        x = denoiser(noisy)
        seconds.append(time.process_time() - began)
        found.append(quality(torch.from_numpy(np.ascontiguousarray(x)).float()[None], clean))
    return (
        statistics.fmean(q.psnr for q in found),
        statistics.fmean(q.ssim for q in found),
        statistics.fmean(seconds),
    )


def best_of(
    family: Callable[[float, np.ndarray], np.ndarray], settings: tuple[float, ...], images: list[Tensor]
) -> float:
    return max(settings, key=lambda s: measured(partial(family, s), images)[0])


def peers(data: Path) -> dict[str, tuple[Denoiser, int]]:
    """Denoisers by name, and how many numbers of each were chosen."""
    training = list(BSDS500(data / "BSDS500", ("train",)).images().values())[:TUNED]
    weight, strength = best_of(chambolle, TV_WEIGHTS, training), best_of(non_local_means, NLM_STRENGTHS, training)
    found: dict[str, tuple[Denoiser, int]] = {
        f"total variation of scikit-image, weight {weight:g}": (partial(chambolle, weight), 1),
        f"non-local means of scikit-image, h = {strength:g} sigma": (partial(non_local_means, strength), 1),
    }
    missing = bm3d_denoiser.available()
    if missing:
        print(f"left out: {missing}", file=sys.stderr)
    else:
        found["BM3D"] = (partial(bm3d_denoiser.denoise, sigma=SIGMA), 0)
    return found


def _serves(name: str) -> str:
    """A weight of total variation does, up to its scale; the other denoisers are no energies."""
    return "yes" if name.startswith("total variation") else "no"


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"images": 1, "TUNED": 1, "TV_WEIGHTS": (0.1,), "NLM_STRENGTHS": (0.8,)},
        data={"type": Path, "default": Path(os.environ.get("LEARNREG_DATA", "data")), "help": "BSDS500 and Set12"},
        images={"type": int, "default": 12, "help": "of Set12"},
    )
    table = Table(
        "denoising_peers",
        "Denoisers of others on Set12",
        "python benchmarks/denoising_peers.py --data DIR --record",
        'The images and the noise of "Learned regularizers on Set12", whose recorded rows are repeated. Settings of '
        f"scikit-image are the best of {len(TV_WEIGHTS)} and of {len(NLM_STRENGTHS)} on {TUNED} training images of "
        "BSDS500. BM3D 4.0.3 with its defaults is told the noise level. CPU seconds of one thread, the "
        "denoiser alone. *Any operator*: the same model serves tomography, deblurring and so on. DnCNN: as published.",
        order=36,
    )
    images = [read_image(path) for path in list_images(options.data / "Set12")[: options.images]]
    for name, (denoiser, numbers) in peers(options.data).items():
        psnr, ssim, seconds = measured(denoiser, images)
        row = {"PSNR, dB": f"{psnr:.2f}", "SSIM": f"{ssim:.4f}", "parameters": numbers, SECONDS: seconds}
        table.rows.append({"denoiser": name, **row, "certified": "no", "any operator": _serves(name)})
        print(table.rows[-1], file=sys.stderr, flush=True)
        table.tracked[f"seconds per image, {name}"] = seconds
    recorded = json.loads((RESULTS / "learned_regularizers.json").read_text(encoding="utf-8"))["rows"]
    for row in (row for row in recorded if row["regularizer"] in OURS):
        name = f"{row['regularizer']}, learned here"
        kept = {key: row[key] for key in ("PSNR, dB", "SSIM", "parameters", SECONDS)}
        table.rows.append({"denoiser": name, **kept, "certified": "yes", "any operator": "yes"})
    table.rows.append({"denoiser": "DnCNN, published", "PSNR, dB": DNCNN, "certified": "no", "any operator": "no"})
    table.rows.sort(key=lambda row: float(row["PSNR, dB"]))
    finish(table, options)


if __name__ == "__main__":
    main()
