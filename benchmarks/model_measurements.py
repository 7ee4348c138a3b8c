"""What model_cards.py measures of a model and of its peers, each noise level once: results are kept in files."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from harness import present
from scipy.sparse.linalg import LinearOperator, eigsh

import learnreg as lr
from learnreg.commands.evaluate import evaluate
from learnreg.datasets import DenoisingPatches, add_noise, list_images, read_image
from learnreg.models.shipped import sha256_of
from learnreg.operators import Identity
from learnreg.regularizers import Regularizer, TotalVariation, import_ridge
from learnreg.report.comparison import quality
from learnreg.training.baseline import tune_total_variation

LEVELS = (5.0, 15.0, 25.0, 50.0)
"""Noise levels in 1/255 that conditioned models are measured at, as far as they know them."""

SEED, TOLERANCE, FINE, CHANGED = 0, 1e-3, 1e-5, 2
CROP, CONDITION_LEVEL = 64, 25.0
TV_IMAGES, TV_PATCHES, TV_SIDE, TV_TOLERANCE = 20, 64, 64, 1e-3
NEARLY_ONE = 0.999
"""Weight of published weakly convex models, which are no more than convex at 1."""


@dataclass(frozen=True)
class Protocol:
    """The clean images, by a name for people; unit: of noise levels, in it so many to 1."""

    on: str
    folder: Path
    count: int
    unit: str = "1/255"
    units: float = 255.0

    @classmethod
    def of(cls, model: lr.Model, data: Path, most: int) -> Protocol:
        """That of a kind of models, with at most so many images, 0: all."""
        if not model.denoises:
            found = cls("CT/validation", data / "CT" / "validation", 0, "% of the mean sinogram value", 100.0)
        elif model.regularizer.image_channels == 3:
            found = cls("BSDS500 test, colour", data / "BSDS500" / "data" / "images" / "test", 0)
        else:
            found = cls("Set12", data / "Set12", 0)
        count = len(list_images(found.folder))
        return replace(found, count=min(count, most) if most else count)

    @contextmanager
    def images(self, most: int | None = None) -> Iterator[Path]:
        """A folder of the first images."""
        with tempfile.TemporaryDirectory() as name:
            for path in list_images(self.folder)[: most or self.count]:
                (Path(name) / path.name).symlink_to(path.resolve())
            yield Path(name)


class Kept:
    """Results by a key, in a file that is written after each, so that an interrupted measurement goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        if key not in self.found:
            print(f"measuring: {self.path.stem}, {key}", file=sys.stderr, flush=True)
            self.found[key] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.found, indent=1))
        return self.found[key]


def levels_of(model: lr.Model) -> list[float]:
    """The noise levels to measure at, in the unit of the protocol."""
    if not model.denoises:
        return [100.0 * float(model.config.get("noise", 0.01))]
    own, known = model.noise_level, model.noise_range
    if not model.conditioned or known is None:
        return list(LEVELS) if model.conditioned else [255.0 * (CONDITION_LEVEL / 255.0 if own is None else own)]
    return [level for level in LEVELS if known[0] * 0.999 <= level / 255.0 <= known[1] * 1.001]


def measure(model: lr.Model, protocol: Protocol, kept: Kept) -> dict[str, Any]:
    """The table "measured" of a card."""
    levels, columns = levels_of(model), []
    for level in levels:
        key = f"{protocol.on}, {protocol.count} images, {level:g} {protocol.unit}, {TOLERANCE:g} and {FINE:g}"
        columns.append(kept.get(key, lambda level=level: _at(model, protocol, level)))
    return {
        "on": protocol.on,
        "unit": protocol.unit,
        "images": protocol.count,
        "seed": SEED,
        "tolerance": TOLERANCE,
        "change_images": min(CHANGED, protocol.count),
        "noise": [round(level, 6) for level in levels],
        **{name: [column[name] for column in columns] for name in columns[0]},
    }


def _at(model: lr.Model, protocol: Protocol, level: float) -> dict[str, Any]:
    sigma = level / protocol.units if model.denoises else None
    with protocol.images(1) as folder:
        evaluate(model, folder, sigma, SEED, 1e-1)  # compiles kernels
    with protocol.images() as folder:
        began = time.process_time()
        found = evaluate(model, folder, sigma, SEED, TOLERANCE)
        seconds = (time.process_time() - began) / found.n
    with protocol.images(min(CHANGED, protocol.count)) as folder:
        fine = evaluate(model, folder, sigma, SEED, FINE)
    if fine.certified_scope == "no":
        print(f"not certified to {FINE:g}: error bound {fine.error_bound:.1e}", file=sys.stderr)
    changes = [abs(a.psnr - b.psnr) for a, b in zip(found.rows, fine.rows, strict=False)]
    return {
        "psnr": found.psnr,
        "psnr_input": found.psnr_input,
        "ssim": found.ssim,
        "seconds": seconds,
        "error_bound": found.error_bound,
        "certified": found.certified_scope,
        "psnr_change": max(changes),
    }


def described(model: lr.Model, protocol: Protocol, kept: Kept) -> dict[str, Any]:
    """The fields of a card that are found here."""
    parameters = sum(p.numel() for p in model.regularizer.parameters())
    found = {"parameters": parameters, "measured": measure(model, protocol, kept)}
    condition = kept.get(f"condition number, {CROP}²", lambda: condition_number(model, protocol))
    return found if condition is None else {**found, "condition_number": condition}


def condition_number(model: lr.Model, protocol: Protocol) -> float | None:
    """Largest over smallest eigenvalue of the energy's Hessian at the solution for a noisy crop; *estimate*, by
    Lanczos' method. None for scans, and where there is no energy."""
    if not model.denoises:
        return None
    channels = model.regularizer.image_channels
    image = read_image(list_images(protocol.folder)[0], colour=channels == 3)[:, :CROP, :CROP]
    level = min(levels_of(model), key=lambda known: abs(known - CONDITION_LEVEL)) / 255.0
    problem = model.problem(tuple(image.shape), noise_level=level if model.conditioned else None).double()
    b = add_noise(image, level, SEED).double()[None]
    try:
        x = lr.solve(problem, b, tolerance=1e-6).x.requires_grad_()
        (slope,) = torch.autograd.grad(problem.energy(x, b).sum(), x, create_graph=True)
    except lr.AssumptionError:
        return None

    def product(v: Any) -> Any:
        direction = torch.as_tensor(v, dtype=torch.float64).reshape(x.shape)
        (found,) = torch.autograd.grad(slope, x, direction, retain_graph=True)
        return found.flatten().numpy()

    hessian = LinearOperator((x.numel(), x.numel()), matvec=product, dtype=float)
    ends = [eigsh(hessian, 1, which=end, tol=1e-3, return_eigenvectors=False)[0] for end in ("LA", "SA")]
    return float(ends[0] / ends[1])


def total_variation(data: Path, level: float) -> TotalVariation:
    """Its weight is tuned on patches of BSDS training images, for each noise level."""
    folder = data / "BSDS500" / "data" / "images" / "train"
    images = {path.name: read_image(path) for path in list_images(folder)[:TV_IMAGES]}
    patches = DenoisingPatches(images, level / 255.0, patch=TV_SIDE, count=TV_PATCHES, seed=SEED)
    found = TotalVariation(0.8 * level / 255.0)
    problem = lr.LowerLevelProblem(Identity((1, TV_SIDE, TV_SIDE)), found)
    with torch.no_grad():
        tune_total_variation(problem, patches, TV_PATCHES, TV_TOLERANCE)
    return found


def published(folder: Path) -> Regularizer:
    """A published ridge, at weight 1 where it is strongly convex for denoising, else a little below."""
    found = import_ridge(folder, boundary="zero")
    for level in LEVELS:
        try:
            problem = lr.LowerLevelProblem(Identity((1, CROP, CROP)), found.at(level / 255.0))
            if problem.strong_convexity <= 1.0 - NEARLY_ONE:  # none on larger images
                return import_ridge(folder, weight=NEARLY_ONE, boundary="zero")
        except lr.ConfigError:  # beyond its noise levels
            continue
        except lr.AssumptionError:
            return import_ridge(folder, weight=NEARLY_ONE, boundary="zero")
    return found


def as_model(regularizer: Regularizer, sigma: float | list[float]) -> lr.Model:
    """A regularizer as a model of one noise level, or of a range."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.safetensors"
        lr.save_model(path, regularizer, {"sigma": sigma})
        return lr.load(path)


def peers(
    data: Path, folder: Path, published_models: Path | None, most: int
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Name, parameters and the table "measured" of each on the grey test images; what is not there is left out."""
    variation = as_model(TotalVariation(0.1), 25 / 255)
    protocol, kept = Protocol.of(variation, data, most), Kept(folder / "total variation.json")
    found = [measure(as_model(total_variation(data, s), s / 255), protocol, kept) for s in LEVELS]
    lists = {
        name: [v for table in found for v in table[name]] for name, value in found[0].items() if type(value) is list
    }
    yield "total variation", 1, {**found[0], **lists}
    there = present(published_models, "published models")
    folders = [] if there is None else sorted(there.iterdir())
    for path in folders:
        regularizer = published(path)
        low, high = (level / 255.0 for level in regularizer.noise_range or (25.0, 25.0))
        kept = Kept(folder / f"{path.name}-{sha256_of(max(path.rglob('*.pth')))[:12]}.json")
        model = as_model(regularizer, [low, high])
        yield f"published {path.name}", sum(b.numel() for b in regularizer.buffers()), measure(model, protocol, kept)
    try:
        bm3d = importlib.import_module("bm3d")
    except ImportError:
        print("bm3d cannot be imported: left out", file=sys.stderr)
        return
    kept = Kept(folder / "bm3d.json")
    rows = [
        kept.get(f"{protocol.count} images, {s:g}", lambda s=s: _denoised(bm3d, protocol, s / 255.0)) for s in LEVELS
    ]
    yield "BM3D", 0, {"noise": list(LEVELS), **{name: [row[name] for row in rows] for name in rows[0]}}


def _denoised(bm3d: Any, protocol: Protocol, sigma: float) -> dict[str, float]:
    """BM3D as its authors' package has it, told the noise level, on the same noisy images."""
    found, began = [], time.process_time()
    for i, path in enumerate(list_images(protocol.folder)[: protocol.count]):
        clean = read_image(path)
        x = torch.as_tensor(bm3d.bm3d(add_noise(clean, sigma, SEED + i)[0].double().numpy(), sigma_psd=sigma))
        found.append(quality(x[None].to(torch.float64), clean, path.name))
    seconds = (time.process_time() - began) / len(found)
    return {"psnr": fmean(q.psnr for q in found), "ssim": fmean(q.ssim for q in found), "seconds": seconds}
