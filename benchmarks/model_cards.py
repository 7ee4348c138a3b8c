"""The shipped models: measured beside their peers, and given their cards.

    python benchmarks/model_cards.py --data DIR --models MODELS --published FOLDER --record

DIR holds Set12, BSDS500 and CT/validation. MODELS holds candidates by the names of shipped models: NAME.safetensors, or
NAME, the folder of a run; and NAME.toml, the fields of the card that nothing here can tell: command, cpu_hours, seeds,
and any other that differs from what is said below. FOLDER holds published ridge models, a folder each. ``--record``
ships them: learnreg/pretrained gets the file and the card of each, docs/models.md the tables and figures. Measurements
are kept in MODELS/measured, for each file and noise level, so that an interrupted run goes on; ``--only NAME`` does
one model.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, Table, arguments, finish
from model_measurements import (
    CONDITION_LEVEL,
    LEVELS,
    NEARLY_ONE,
    SEED,
    Kept,
    Protocol,
    described,
    peers,
)

import learnreg as lr
from learnreg.datasets import add_noise, natural_images
from learnreg.models.cards import SCOPES, check_card, write_card
from learnreg.models.shipped import sha256_of

SHIPPED, FIGURES = ROOT / "learnreg" / "pretrained", ROOT / "docs" / "models"

NAMES = {
    "denoise-foe": "field of experts, convex",
    "denoise-ridge-convex": "ridge regularizer, convex",
    "denoise-ridge-cnc": "ridge regularizer, convex-nonconvex: R is not convex, every denoising energy is",
    "denoise-icnn": "input-convex network",
    "denoise-multivariate": "ridge regularizer of groups of filters: R is not convex, every denoising energy is",
    "denoise-reweighted": "chain of convex problems, reweighted by their solutions",
    "denoise-colour": "field of experts across colours, convex",
    "ct-foe": "field of experts for few-view CT, convex",
    "ct-ridge": "ridge regularizer for few-view CT, convex",
}
"""The names of shipped models, and what each is unless its NAME.toml says another summary."""

PHOTOGRAPHS = {
    "data": "BSDS500, train and test images (not val), random patches with simulated noise",
    "protocol": "luma, or RGB, in [0, 1]; white Gaussian noise, not clipped; PSNR with data range 1",
    "images_licence": "BSDS500: non-commercial research and education, by its authors' terms; no image is shipped",
    "unsuitable": "noise that is not white (JPEG, raw files of cameras), levels it was not learned for, images that "
    "are no photographs without a look at what it does to them; medical diagnosis",
}
SCANS = {
    "protocol": "256 x 256 slices in [0, 1], 60 parallel views over 180 degrees, white noise of 1 % of the mean "
    "sinogram value; PSNR with data range 1",
    "unsuitable": "other doses and geometries without learnreg adapt or --data-weight; medical diagnosis",
}
TEXT = f"""PSNR in dB at noise of 5, 15, 25 and 50/255, and SSIM and CPU seconds of one thread per image (noise, solve,
certificate and measures) at 25/255; full images, means, seeded noise, solved to a root-mean-square error of 1e-3, which
is certified for the minimiser that is named. Models for colour and for CT are measured on images of their own, see
docs/models.md. The weight of total variation is tuned on BSDS training images for each level. Published ridges are
imported and solved by learnreg, their convolutions composed, at weight {NEARLY_ONE} where 1 is not strongly convex.
BM3D is the package of its authors (PyPI), told the noise level. The condition number is that of the energy's Hessian at
the solution for a 64² crop (an estimate by Lanczos' method)."""


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={
            "images": 1,
            "model_measurements.LEVELS": (25.0,),
            "model_measurements.CROP": 16,
            "model_measurements.TV_PATCHES": 2,
            "model_measurements.TV_IMAGES": 1,
            "model_measurements.TOLERANCE": 1e-2,
            "model_measurements.FINE": 5e-3,
        },
        data={"type": Path, "default": Path(os.environ.get("LEARNREG_DATA", "data")), "help": "folder of data"},
        models={"type": Path, "required": True, "help": "folder of the candidates"},
        published={"type": Path, "help": "folder of published ridge models"},
        images={"type": int, "default": 0, "help": "images at most, 0: all"},
        only={"default": "", "choices": ["", *NAMES], "help": "one of them"},
    )
    found = {name: path for name in NAMES if (path := candidate(options.models, name)) is not None}
    chosen = {options.only: found[options.only]} if options.only else found
    cards = {name: card_of(name, path, options) for name, path in chosen.items()}
    if options.record:
        for name, card in cards.items():
            ship(name, chosen[name], card)
    shown = {name: card for name, card in lr.pretrained().items() if name not in cards} | cards
    table = Table(
        "model_cards",
        "Shipped models beside their peers",
        "python benchmarks/model_cards.py --data DIR --models MODELS --published FOLDER --record",
        TEXT,
        order=36,
    )
    for name, parameters, measured in peers(
        options.data, options.models / "measured", options.published, options.images
    ):
        table.rows.append(row(name, parameters, measured, None))
    for name, card in shown.items():
        table.rows.append(row(name, card["parameters"], card["measured"], card.get("condition_number")))
        table.tracked[f"seconds per image, {name}"] = at(card["measured"], "seconds")
    finish(table, options)
    if options.record:
        runpy.run_path(str(ROOT / "docs" / "tables.py"), run_name="__main__")


def candidate(folder: Path, name: str) -> Path | None:
    """The file of a candidate."""
    places = (folder / f"{name}.safetensors", folder / name / "model.safetensors")
    return next((path for path in places if path.is_file()), None)


def card_of(name: str, path: Path, options: Any) -> dict[str, Any]:
    """What is said of a candidate, and what is measured."""
    model, digest = lr.load(path), sha256_of(path)
    protocol = Protocol.of(model, options.data, options.images)
    kept = Kept(options.models / "measured" / f"{name}-{digest[:12]}.json")
    card = {
        "name": name,
        "summary": NAMES[name],
        "weights_licence": "mit",
        "version": version("learnreg"),
        **(PHOTOGRAPHS if model.denoises else SCANS),
        **said_by_run(path.parent),
        **said(options.models / f"{name}.toml"),
        "sha256": digest,
        **described(model, protocol, kept),
    }
    try:
        check_card(card)
    except lr.ConfigError as error:
        print(f"{name}: {error} Write them into {options.models / name}.toml.", file=sys.stderr)
        if options.record:
            raise
    return card


def said(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def said_by_run(folder: Path) -> dict[str, Any]:
    """What the folder of a run says; of a single run, not of recipes with several stages."""
    config = said(folder / "config.toml")
    made = config.get("made_with", {})
    commit = (
        made.get("commit")
        or subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()
    )
    return {"commit": commit[:12] or "unknown", **({"seeds": [config["seed"]]} if "seed" in config else {})}


def ship(name: str, path: Path, card: Mapping[str, Any]) -> None:
    """The file, its card, and figures of it."""
    SHIPPED.mkdir(exist_ok=True)
    shutil.copyfile(path, SHIPPED / f"{name}.safetensors")
    write_card(SHIPPED / f"{name}.toml", card)
    FIGURES.mkdir(exist_ok=True)
    model = lr.load(name)
    figures = {"filters": lr.plot.filters, "potentials": lr.plot.potentials}
    for kind, draw in figures.items():
        if model.regularizer.pictures() is not None:
            draw(model.regularizer).savefig(FIGURES / f"{name}-{kind}.png", dpi=80, bbox_inches="tight")
    if model.denoises:
        draw_photograph(name, model)


def draw_photograph(name: str, model: lr.Model) -> None:
    """One that the package holds, at full size, noisy and denoised; and the weights that follow from it."""
    level = model.usual_noise_level or CONDITION_LEVEL / 255.0
    clean = next(iter(natural_images("test", colour=model.regularizer.image_channels == 3).values())).float()
    noisy = add_noise(clean, level, SEED)
    x = model.solve(noisy[None], 1e-3, noise_level=level if model.conditioned else None).x[0]
    quality = {"quality": 85}  # a PNG file of noise takes a megabyte
    compared = lr.plot.comparison({"noisy": noisy, "denoised": x}, clean, measured="noisy")
    compared.savefig(FIGURES / f"{name}.jpg", dpi=100, bbox_inches="tight", pil_kwargs=quality)
    if model.regularizer.chain() is not None:
        maps = lr.plot.weights(model.regularizer.conditioned(level), x)
        maps.savefig(FIGURES / f"{name}-weights.jpg", dpi=100, bbox_inches="tight", pil_kwargs=quality)


def at(measured: Mapping[str, Any], column: str, level: float = CONDITION_LEVEL) -> float:
    """An entry at the noise level next to this one."""
    index = min(range(len(measured["noise"])), key=lambda i: abs(measured["noise"][i] - level))
    return float(measured[column][index])


def row(name: str, parameters: int, measured: Mapping[str, Any], condition: float | None) -> dict[str, Any]:
    psnr = dict(zip(measured["noise"], measured["psnr"], strict=True))
    on = measured.get("on", "Set12")
    same = on == "Set12"
    certified: Sequence[str] = measured.get("certified", ())
    return {
        "model": name if same else f"{name} ({on})",
        **{f"{level:g}": f"{psnr[level]:.2f}" if same and level in psnr else "" for level in LEVELS},
        "SSIM": f"{at(measured, 'ssim'):.4f}" if same else "",
        "parameters": parameters or "",
        "CPU s": f"{at(measured, 'seconds'):.2g}",
        "certified": max(certified, key=SCOPES.index) if certified else "",
        "condition number": "" if condition is None else f"{condition:.3g}",
    }


if __name__ == "__main__":
    torch.manual_seed(SEED)
    main()
