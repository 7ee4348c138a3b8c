"""A folder of shipped models, as the package has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.models.cards import write_card
from learnreg.models.model import save_model
from learnreg.models.shipped import sha256_of
from learnreg.regularizers import Regularizer

LEVELS = [5.0, 25.0]


def some_card(name: str, **changes: Any) -> dict[str, Any]:
    """A complete card, without a file of its own."""
    measured = {
        "on": "Set12",
        "unit": "1/255",
        "images": 12,
        "seed": 0,
        "tolerance": 1e-3,
        "change_images": 2,
        "noise": LEVELS,
        "psnr": [37.5, 28.75],
        "psnr_input": [34.15, 20.17],
        "ssim": [0.95, 0.8],
        "seconds": [0.5, 0.75],
        "error_bound": [9e-4, 8e-4],
        "certified": ["global", "local"],
        "psnr_change": [0.001, 0.002],
    }
    texts = {
        "name": name,
        "summary": "a field of experts, convex",
        "data": "BSDS500, train",
        "protocol": "luma in [0, 1], no clipping",
        "command": f"python examples/recipes/{name}.py",
        "weights_licence": "mit",
        "images_licence": "non-commercial research and education",
        "unsuitable": "noise that is not white",
        "version": "0.1.0",
        "commit": "1a9516b",
        "sha256": 64 * "0",
    }
    return {**texts, "cpu_hours": 1.5, "parameters": 30, "seeds": [0], "measured": measured, **changes}


def ship(folder: Path, name: str, problem: LowerLevelProblem | Regularizer, **config: Any) -> dict[str, Any]:
    """The model's file and its card, in ``folder``."""
    file = folder / f"{name}.safetensors"
    save_model(file, problem, config)
    card = some_card(name, sha256=sha256_of(file))
    write_card(folder / f"{name}.toml", card)
    return card
