"""Colours and volumes: filters across channels against the same filters for each, and a certified volume.

    python benchmarks/colour.py --data DIR [--minutes 10] [--images 8] [--record]

``--data``: a folder that holds BSDS500, whose training images are learned from and whose first test images are
measured; without it the colour photographs of scikit-image.
"""

from __future__ import annotations

import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from harness import Table, arguments, finish
from torch import Tensor

import learnreg as lr
from learnreg.commands.evaluate import denoise
from learnreg.datasets import BSDS500, DenoisingPatches, add_noise, natural_images
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, Regularizer, TotalVariation
from learnreg.report.comparison import quality
from learnreg.training.baseline import tune_total_variation

SIGMA, TOLERANCE = 25 / 255, 1e-3
PATCH, PATCHES, TUNED = 48, 1024, 16
FILTERS, SIZE = 36, 5
CROP = 160
SIDE, VOLUME_FILTERS, VOLUME_TOLERANCE = 64, 13, 1e-3


def images(data: str | None, count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """To learn from and, central crops of them, to measure on, (3, height, width)."""
    if data is None:
        training, test = natural_images("train", colour=True), natural_images("test", colour=True)
    else:
        training = BSDS500(Path(data) / "BSDS500", ("train",), colour=True).images()
        test = BSDS500(Path(data) / "BSDS500", ("test",), colour=True).images()
    return training, {name: _crop(test[name]) for name in sorted(test)[:count]}


def _crop(image: Tensor) -> Tensor:
    top, left = ((n - CROP) // 2 for n in image.shape[-2:])
    return image[:, top : top + CROP, left : left + CROP] if min(top, left) >= 0 else image


def learned(coupling: str, pairs: DenoisingPatches, minutes: float) -> tuple[Regularizer, int]:
    torch.manual_seed(0)
    R = FieldsOfExperts(FILTERS, SIZE, lr.PseudoHuber(5e-3, 0.3), minimum_smoothing=2e-3, channels=3, coupling=coupling)  # type: ignore[arg-type]
    found = lr.train(lr.LowerLevelProblem(Identity((3, PATCH, PATCH)), R), pairs, minutes=minutes, batch_size=8)
    return R, found.updates


def tuned(coupling: str, pairs: DenoisingPatches) -> Regularizer:
    R = TotalVariation(0.8 * SIGMA, channels=3, coupling=coupling)  # type: ignore[arg-type]
    tune_total_variation(lr.LowerLevelProblem(Identity((3, PATCH, PATCH)), R), pairs, TUNED, 1e-3)
    return R


def row(name: str, R: Regularizer, test: dict[str, Tensor], updates: int | str = "") -> dict[str, Any]:
    psnr, ssim, seconds, bounds, certified = [], [], [], [], True
    for i, clean in enumerate(test.values()):
        noisy, began = add_noise(clean, SIGMA, i), time.process_time()
        found = denoise(R, noisy[None], TOLERANCE)
        seconds.append(time.process_time() - began)
        reached = quality(found.x[0], clean)
        psnr.append(reached.psnr)
        ssim.append(reached.ssim)
        bounds.append(float(found.error_bound))
        certified &= found.certified
    return {
        "regularizer": name,
        "numbers": sum(p.numel() for p in R.parameters()),
        "updates": updates,
        "PSNR [dB]": f"{statistics.fmean(psnr):.2f}",
        "SSIM": f"{statistics.fmean(ssim):.4f}",
        "largest bound": f"{max(bounds):.1e}" + ("" if certified else " (estimate)"),
        "s/image": f"{statistics.fmean(seconds):.1f}",
    }


def volume() -> Tensor:
    """Smooth balls in a box, (1, side, side, side)."""
    axis = torch.linspace(-1, 1, SIDE)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    first = (x**2 + y**2 + z**2 < 0.6).float()
    second = ((x - 0.2) ** 2 + (y + 0.1) ** 2 + 2 * z**2 < 0.15).float()
    return (0.2 + 0.5 * first - 0.3 * second + 0.1 * x)[None]


def volume_row(name: str, R: Regularizer) -> dict[str, Any]:
    clean = volume()
    noisy = add_noise(clean, 0.1, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    found = denoise(R, noisy[None], VOLUME_TOLERANCE)
    seconds = time.process_time() - began
    error = lambda x: float(-10.0 * (x - clean).double().square().mean().log10())  # noqa: E731
    return {
        "regularizer": name,
        "PSNR noisy [dB]": f"{error(noisy):.2f}",
        "PSNR [dB]": f"{error(found.x[0]):.2f}",
        "bound": f"{float(found.error_bound):.1e} ({found.bound_kind})",
        "applications": found.operator_applications,
        "CPU s": f"{seconds:.1f}",
        "more memory [MB]": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024),
    }


def main() -> None:
    given = arguments(
        __doc__ or "",
        quick={
            "minutes": 0.02, "images": 1, "data": None, "PATCHES": 16, "TUNED": 2, "FILTERS": 4, "SIZE": 3,
            "CROP": 32, "PATCH": 16, "SIDE": 10, "VOLUME_FILTERS": 3,
        },
        data={"default": None, "help": "folder that holds BSDS500"},
        minutes={"type": float, "default": 10.0, "help": "training of each field of experts (default 10)"},
        images={"type": int, "default": 8, "help": "test images (default 8)"},
    )  # fmt: skip
    # the volume first: the peak of the process' memory is its own
    torch.manual_seed(0)
    volumes = [volume_row("total variation", TotalVariation(0.1, dimensions=3))]
    experts = FieldsOfExperts(VOLUME_FILTERS, 3, lr.PseudoHuber(1e-2, 0.3), "valid", dimensions=3)
    volumes.append(volume_row(f"{VOLUME_FILTERS} experts of 3³, untrained", experts))
    training, test = images(given.data, given.images)
    pairs = DenoisingPatches(training, SIGMA, patch=PATCH, count=PATCHES, seed=0)
    rows = []
    for coupling in ("separate", "joint"):
        rows.append(row(f"total variation, {coupling}", tuned(coupling, pairs), test))
    for coupling in ("separate", "joint"):
        R, updates = learned(coupling, pairs, given.minutes)
        rows.append(row(f"{FILTERS} experts of {SIZE}², {coupling}", R, test, updates))
    source = "BSDS500 test" if given.data else "scikit-image's held-out"
    text = (
        f"Noise 25/255 in every channel of colour images, {given.minutes:g} minutes of training each; central crops of "
        f"{CROP}² of {len(test)} {source} images. PSNR of all channels together."
    )
    command = (
        "python benchmarks/colour.py --data DIR --record" if given.data else "python benchmarks/colour.py --record"
    )
    finish(Table("colour", "Colour: filters across channels", command, text, rows, order=46), given)
    text = f"A volume of {SIDE}³, noise 0.1, denoised to a certified root-mean-square error of {VOLUME_TOLERANCE:g}."
    finish(Table("volume", "A volume, denoised", command, text, volumes, order=47), given)


if __name__ == "__main__":
    main()
