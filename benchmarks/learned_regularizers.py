"""Every regularizer trained for denoising as long as the others, measured on Set12.

    python benchmarks/learned_regularizers.py --data DIR --runs RUNS --minutes 25 --cores 1 --record

DIR holds BSDS500 (its train and test images are trained on) and Set12. RUNS keeps the run folders: a model that is
there is not trained again, so that the comparison can be continued. ``--only NAME`` trains and measures one of them,
so that two can be trained side by side.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import Table, arguments, finish
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

import learnreg as lr
from learnreg.commands.evaluate import evaluate
from learnreg.datasets import add_noise, list_images, read_image

SIGMA, SEED, TOLERANCE = 25 / 255, 0, 1e-3
CROP = 64

MODELS: dict[str, Sequence[str]] = {
    "total variation": ("--regularizer", "tv"),
    "learned total variation": ("--regularizer", "learned-tv"),
    "field of experts": ("--regularizer", "fields-of-experts"),
    "ridge, convex": ("--regularizer", "ridge"),
    "ridge, convex-nonconvex": ("--regularizer", "ridge", "--set", "convexity=convex-nonconvex"),
    "input-convex network, smooth": ("--regularizer", "icnn"),
    "input-convex network, lifted": ("--regularizer", "icnn", "--set", "form=lifted", "--set", "features=8"),
    "learned generalised variation": ("--regularizer", "learned-tgv"),
}


def train(name: str, data: Path, folder: Path, minutes: float, cores: int) -> None:
    """One run of the command line, unless its folder has a model."""
    if (folder / "model.safetensors").exists():
        return
    command = [sys.executable, "-m", "learnreg.commands.cli", "train", "denoise", "--data", str(data / "BSDS500")]
    command += ["--sigma", "25/255", "--minutes", f"{minutes:g}", "--out", str(folder), *MODELS[name]]
    print(f"training: {name}", file=sys.stderr, flush=True)
    threads = {"OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores)}
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | threads)


def condition(model: lr.Model, image: Tensor) -> float:
    """Largest over smallest eigenvalue of the energy's Hessian at the solution for a noisy crop; *estimate*, by
    Lanczos' method."""
    crop = image[:, :CROP, :CROP].double()
    problem = model.problem((1, CROP, CROP)).double()
    b = add_noise(crop.float(), SIGMA, SEED).double()[None]
    x = lr.solve(problem, b, tolerance=1e-6).x.requires_grad_()
    (slope,) = torch.autograd.grad(problem.energy(x, b).sum(), x, create_graph=True)

    def product(v: Any) -> Any:
        direction = torch.as_tensor(v, dtype=torch.float64).reshape(x.shape)
        (found,) = torch.autograd.grad(slope, x, direction, retain_graph=True)
        return found.flatten().numpy()

    hessian = LinearOperator((CROP**2, CROP**2), matvec=product, dtype=float)
    ends = [eigsh(hessian, 1, which=end, tol=1e-3, return_eigenvectors=False)[0] for end in ("LA", "SA")]
    return float(ends[0] / ends[1])


def row(name: str, data: Path, folder: Path) -> dict[str, Any]:
    model = lr.load(folder / "model.safetensors")
    began = time.process_time()
    found = evaluate(model, data / "Set12", SIGMA, SEED, TOLERANCE)
    seconds = (time.process_time() - began) / found.n
    image = read_image(list_images(data / "Set12")[0])
    updates = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    return {
        "regularizer": name,
        "minutes": tomllib.loads((folder / "config.toml").read_text())["minutes"],
        "updates": updates,
        "PSNR, dB": f"{found.psnr:.2f}",
        "SSIM": f"{found.ssim:.4f}",
        "parameters": sum(p.numel() for p in model.regularizer.parameters()),
        "CPU seconds per image": seconds,
        "largest error bound": found.error_bound if found.certified else f"{found.error_bound:.2g} (not certified)",
        "condition number": f"{condition(model, image):.3g}",
    }


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"minutes": 0.05, "cores": 1, "only": "total variation", "CROP": 16},
        data={"type": Path, "default": Path(os.environ.get("LEARNREG_DATA", "data")), "help": "BSDS500 and Set12"},
        runs={"type": Path, "default": Path("runs/regularizers"), "help": "folder of the run folders"},
        minutes={"type": float, "default": 20.0, "help": "of each training run"},
        cores={"type": int, "default": 2, "help": "of each training run"},
        only={"default": "", "choices": ["", *MODELS], "help": "one of the regularizers"},
    )
    table = Table(
        "learned_regularizers",
        "Learned regularizers on Set12",
        f"python benchmarks/learned_regularizers.py --data DIR --runs RUNS --minutes {options.minutes:g} --cores "
        f"{options.cores} --record",
        "`learnreg train denoise` on the 400 train and test images of BSDS500, sigma 25/255, with its defaults, on "
        f"{options.cores} core(s) for the minutes given; the 12 images of Set12 at full size, reconstructed to a "
        f"certified root-mean-square error of {TOLERANCE:g} in float32. CPU seconds, of one thread, are those of the "
        "whole evaluation: noise, solve, certificate, PSNR and SSIM. The condition number is that of the energy's "
        f"Hessian at the solution for a {CROP}² crop (an estimate by Lanczos' method).",
        order=35,
    )
    for name in [options.only] if options.only else list(MODELS):
        folder = options.runs / name.replace(", ", "-").replace(" ", "-")
        train(name, options.data, folder, options.minutes, options.cores)
        table.rows.append(row(name, options.data, folder))
        print(table.rows[-1], file=sys.stderr, flush=True)
        table.tracked[f"seconds per image, {name}"] = table.rows[-1]["CPU seconds per image"]
    finish(table, options)


if __name__ == "__main__":
    main()
