"""Training of convex ridge regularizers against the recipe of a public comparative study, from outside.

    python benchmarks/training_peer.py --data DIR --peers PEERS --runs RUNS --record

DIR holds BSDS500 and Set12, PEERS a checkout of the study's code, see benchmarks/peers/README.md. Both train on
photographs of BSDS500 (train and test) with noise of 0.1, one thread each. RUNS keeps what was
trained, so that a second call measures alone.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, Table, arguments, finish
from peers import study_training
from peers.study_training import NOISE, Epoch
from torch import Tensor

import learnreg as lr
from learnreg.datasets import BSDS500, add_noise, list_images, read_image
from learnreg.operators import Identity
from learnreg.plot.style import COLOURS, figure_file, new_figure, styled
from learnreg.regularizers import FieldsOfExperts, Regularizer, Scaled
from learnreg.report.comparison import quality
from learnreg.training.start_tuning import least_loss

COMMON = ("regularizer=ridge", "convolutions=4,8,32", "patches=2048", "batch_size=4")
_FROM_A_GOOD_START = ("step_size=0.002", "tolerance=0.2", "schedule=annealed", "updates=300")
OWN: dict[str, tuple[str, ...]] = {
    "learnreg": ("step_size=0.02", "tolerance=0.1"),
    "learnreg, pretrained": ("pretraining=150", *_FROM_A_GOOD_START),
    "learnreg, pretrained longer": ("pretraining=400", *_FROM_A_GOOD_START),
}
"""Options of ``learnreg train denoise``, besides ``COMMON``."""

TRAINED, CROP, CROPS, TOLERANCE = 360, 64, 8, 1e-3
"""Photographs that the study trains on; crops on which the scalars of its models are chosen."""
FIGURE = "models/training_peer.png"
_SHOWN = 1.5
"""dB of the figure, from the best down."""

PEER = f"{study_training.NAME}, its recipe"
MOMENTS = (0.35, 0.5, 1.0, 2.0, 8.0, 32.0, 128.0)
"""Minutes after which models are measured."""

Curve = list[tuple[float, float]]
"""CPU minutes, PSNR on Set12."""


# ---- what is trained -------------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """Of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def train_own(data: Path, folder: Path, minutes: float, options: tuple[str, ...]) -> list[tuple[float, Path]]:
    """``learnreg train denoise`` for so many CPU minutes, start of the program included: the best model so far, copied
    whenever there is a better one, and the CPU minutes then."""
    run, kept = folder / "run", folder / "kept"
    if not kept.exists():
        kept.mkdir(parents=True)
        command = [sys.executable, "-m", "learnreg", "train", "denoise", "--data", str(data / "BSDS500")]
        command += ["--out", str(run), "--minutes", "1e3"]
        held = ("held_out=20", "held_out_of=train/", f"sigma={NOISE:g}")
        command += [part for option in (*COMMON, *options, *held) for part in ("--set", option)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seen = 0.0
        while process.poll() is None and cpu_seconds(process.pid) < 60.0 * minutes:
            best = run / "best.safetensors"
            if best.exists() and best.stat().st_mtime > seen:
                seen = best.stat().st_mtime
                shutil.copy(best, kept / f"{cpu_seconds(process.pid) / 60.0:.4f}.safetensors")
            time.sleep(1.0)
        process.terminate()
        process.wait()
    found = [(float(path.name.removesuffix(".safetensors")), path) for path in kept.glob("*.safetensors")]
    return sorted(found)


def train_peer(data: Path, folder: Path, minutes: float) -> list[Epoch]:
    """The first phase of the study's recipe for so many CPU minutes, see peers/study_training.py."""
    path = folder / "study.pt"
    if not path.exists():
        images = list(BSDS500(data / "BSDS500", ("train", "test")).images().values())[:TRAINED]
        found = study_training.pretrain([image.reshape(1, *image.shape[-2:]) for image in images], 60.0 * minutes)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save([(e.steps, e.seconds, e.state) for e in found], path)
    return [Epoch(*parts) for parts in torch.load(path, weights_only=True)]


# ---- what it makes of Set12 ------------------------------------------------------------------------------------------


def psnr_of(regularizer: Regularizer, images: list[Tensor]) -> float:
    """Mean PSNR, each image solved to a certified root-mean-square error of ``TOLERANCE``."""
    found = []
    for i, clean in enumerate(images):
        problem = lr.LowerLevelProblem(Identity(tuple(clean.shape)), regularizer)
        solution = lr.solve(problem, add_noise(clean, NOISE, i)[None], TOLERANCE)
        assert solution.certified
        found.append(quality(solution.x[0], clean).psnr)
    return math.fsum(found) / len(found)


def as_energy(epoch: Epoch) -> FieldsOfExperts:
    ridge = study_training.ridge_of(epoch.state)
    parts = (p.float() for p in (ridge.filters, ridge.weights, ridge.smoothing))
    return FieldsOfExperts.from_arrays(*parts, boundary="zero", potential=lr.Huber(1.0))


def balanced(R: FieldsOfExperts, crops: Tensor, noisy: Tensor) -> Regularizer:
    """factor · scale² R(x / scale) with the two numbers that suit the crops best: a phase of its own in the recipe,
    whose time is not counted here."""
    problems: dict[tuple[float, float], float] = {}

    def loss(log_factor: float, log_scale: float) -> float:
        key = (round(log_factor, 6), round(log_scale, 6))
        if key not in problems:
            problem = lr.LowerLevelProblem(Identity(tuple(crops.shape[1:])), scaled(*key))
            problems[key] = float((lr.solve(problem, noisy, 3.0 * TOLERANCE).x - crops).square().mean())
        return problems[key]

    def scaled(log_factor: float, log_scale: float) -> Regularizer:
        return Scaled(R.stretched(math.exp(log_scale)), math.exp(log_factor))

    factors: dict[float, float] = {}

    def of_scale(log_scale: float) -> float:
        start = factors[min(factors, key=lambda known: abs(known - log_scale))] if factors else 0.0
        factors[log_scale] = least_loss(lambda f: loss(f, log_scale), start, 0.4, 10)
        return loss(factors[log_scale], log_scale)

    best = least_loss(of_scale, 0.0, 0.8, 3)
    if best not in factors:
        of_scale(best)
    return scaled(factors[best], best)


def near_moments(minutes: list[float]) -> list[int]:
    """The last of all, and those nearest to ``MOMENTS``."""
    if not minutes:
        return []
    chosen = {min(range(len(minutes)), key=lambda k: abs(minutes[k] - m)) for m in MOMENTS if m <= minutes[-1]}
    return sorted(chosen | {len(minutes) - 1})


def curve_of_own(models: list[tuple[float, Path]], images: list[Tensor]) -> Curve:
    return [
        (models[k][0], psnr_of(lr.load(models[k][1]).regularizer, images)) for k in near_moments([m for m, _ in models])
    ]


def curve_of_peer(epochs: list[Epoch], images: list[Tensor], data: Path) -> Curve:
    photographs = list(BSDS500(data / "BSDS500", ("train",)).images().values())[:CROPS]
    crops = torch.stack([p.reshape(1, *p.shape[-2:])[:, 100 : 100 + CROP, 100 : 100 + CROP] for p in photographs])
    noisy = torch.stack([add_noise(crop, NOISE, 100 + i) for i, crop in enumerate(crops)])
    found: Curve = []
    for k in near_moments([e.seconds / 60.0 for e in epochs]):
        if epochs[k].steps:
            found.append((epochs[k].seconds / 60.0, psnr_of(balanced(as_energy(epochs[k]), crops, noisy), images)))
            print(found[-1], file=sys.stderr, flush=True)
    return found


def reached(curve: Curve, psnr: float) -> float | None:
    """The first minute at which the curve is as good."""
    return next((minutes for minutes, at in curve if at >= psnr), None)


@styled
def draw(curves: dict[str, Curve]) -> Any:
    figure = new_figure(5.0, 3.2)
    axes = figure.subplots()
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        axes.plot(*zip(*curve, strict=True), "o-", color=colour, label=name, markersize=3)
    axes.set_xscale("log")
    ticks = [m for m in MOMENTS if m <= max(minutes for curve in curves.values() for minutes, _ in curve)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    top = max(psnr for curve in curves.values() for _, psnr in curve)
    axes.set_ylim(top - _SHOWN, top + 0.1)
    axes.set_xlabel("CPU minutes of training, one thread")
    axes.set_ylabel("PSNR on Set12 [dB]")
    axes.legend()
    return figure


def _settings() -> str:
    return "; ".join(f"*{name}*: {', '.join(f'`{option}`' for option in options)}" for name, options in OWN.items())


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"minutes": 0.2, "peer_minutes": 0.2, "images": 1, "CROPS": 2, "TRAINED": 16},
        data={"type": Path, "required": True, "help": "BSDS500 and Set12"},
        peers={"help": "folder with the checkout of LearnedRegularizers"},
        runs={"type": Path, "default": Path("runs/training-peer"), "help": "what was trained"},
        minutes={"type": float, "default": 4.0, "help": "CPU minutes of learnreg"},
        peer_minutes={"type": float, "default": 45.0, "help": "CPU minutes of the study's recipe"},
        images={"type": int, "default": 12, "help": "of Set12"},
    )
    table = Table(
        "training_peer",
        "Training of convex ridge regularizers against a comparative study's recipe",
        "python benchmarks/training_peer.py --data DIR --peers PEERS --runs RUNS --record",
        f"PSNR on Set12 in dB, noise {NOISE:g}, against CPU minutes of training in one thread. learnreg: `learnreg "
        f"train denoise` with {', '.join(f'`{option}`' for option in COMMON)} on 380 photographs of BSDS500, from "
        f"the start of the program on, its best model on the 20 others; {_settings()}. The study: the first phase of "
        f"its recipe ({study_training.EPOCHS} epochs in all, of which {options.peer_minutes:g} minutes were run) by "
        f"its own functions, on {TRAINED} photographs of the same; two scalars of each of its models, which have a "
        f"phase of their own there, are chosen here on {CROPS} crops, without counting their time. All is solved by "
        f"learnreg to a certified error of {TOLERANCE:g}, images continued by zero. *ratio*: of the row's minutes "
        "to those until a curve of learnreg is as good.",
        order=38,
    )
    images = [read_image(path) for path in list_images(options.data / "Set12")[: options.images]]
    missing = study_training.available(options.peers)
    if missing:
        print(f"left out: {missing}", file=sys.stderr)
    kept = options.runs / "curves.json"
    curves: dict[str, Curve] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for name, own in OWN.items():
        if name not in curves:
            folder = options.runs / name.replace(", ", "-")
            curves[name] = curve_of_own(train_own(options.data, folder, options.minutes, own), images)
    if not missing and PEER not in curves:
        curves[PEER] = curve_of_peer(train_peer(options.data, options.runs, options.peer_minutes), images, options.data)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(curves), encoding="utf-8")
    for name, curve in curves.items():
        for minutes, psnr in curve:
            needed = min((m for own in OWN if (m := reached(curves[own], psnr)) is not None), default=None)
            ratio = None if name in OWN or needed is None else f"{minutes / needed:.1f}"
            row = {"trained by": name, "CPU minutes": f"{minutes:.2f}", "PSNR, dB": f"{psnr:.2f}", "ratio": ratio}
            table.rows.append(row)
    if options.record:
        (ROOT / "docs" / FIGURE).write_bytes(figure_file(draw(curves), "png", dpi=150))
        table.notes.append(f"![PSNR on Set12 against minutes of training]({FIGURE})")
    finish(table, options)


if __name__ == "__main__":
    main()
