"""Learned discretisations of total variation against forward differences: discs, natural images.

    python benchmarks/learned_total_variation.py [--data DIR] [--updates 30] [--figure FILE] [--record]

``--data``: a folder that holds BSDS500, whose first test images are measured, too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, Table, arguments, finish
from torch import Tensor

import learnreg as lr
from learnreg.commands.evaluate import denoise
from learnreg.datasets import BSDS500, DenoisingPatches, add_noise, natural_images
from learnreg.operators import Identity
from learnreg.regularizers import LearnedTotalVariation, Regularizer, TotalVariation
from learnreg.training.baseline import tune_total_variation

TOLERANCE = 5e-4
SIDE, DISC_SIGMA, NATURAL_SIGMA = 48, 0.1, 25 / 255
SMOOTHINGS = (1e-3, 3e-3, 1e-2, 3e-2)
LEARNED = ((1, 5), (4, 5))
"""Positions, side of the kernels."""

SAMPLES, HELD_OUT = 64, 100
EDGE_SIDE, EDGE_RADIUS, EDGE_ANGLES = 64, 24.0, 72


class Discs(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Antialiased discs of random centre, radius and grey values with noise; item i depends on the seed and i alone."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(10_000 * self.seed + index)
        row, column, radius, first, second = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        radius = 6.0 + 12.0 * radius
        inside, outside = 0.6 + 0.4 * first, 0.4 * second
        if index % 2:
            inside, outside = outside, inside
        room = SIDE - 2.0 * radius - 4.0
        distance = _fine_distance(SIDE, radius + 2.0 + room * row, radius + 2.0 + room * column)
        clean = (outside + (inside - outside) * _pixel_means((distance < radius).double())).float()[None]
        return add_noise(clean, DISC_SIGMA, 10_000 * self.seed + index), clean


def _fine_distance(side: int, row: float, column: float, parts: int = 8) -> Tensor:
    at = (torch.arange(side * parts, dtype=torch.float64) + 0.5) / parts
    return ((at[:, None] - row) ** 2 + (at[None, :] - column) ** 2).sqrt()


def _pixel_means(fine: Tensor, parts: int = 8) -> Tensor:
    return torch.nn.functional.avg_pool2d(fine[None, None], parts)[0, 0]


@dataclass
class Setting:
    """What is learned from, and pairs (noisy, clean) of images to measure on, by name."""

    name: str
    shape: tuple[int, int, int]
    pairs: Any
    tests: dict[str, list[tuple[Tensor, Tensor]]]
    learned: dict[tuple[int, int], LearnedTotalVariation] = field(default_factory=dict)
    variation: TotalVariation | None = None
    notes: list[str] = field(default_factory=list)


def settings(data: str | None) -> list[Setting]:
    """Discs, and photographs."""
    held_out = Discs(HELD_OUT, 2)
    discs = Setting("discs", (1, SIDE, SIDE), Discs(SAMPLES, 1), {"100 discs": [held_out[i] for i in range(HELD_OUT)]})
    patches = DenoisingPatches(natural_images("train"), NATURAL_SIGMA, patch=64, count=SAMPLES, seed=0)
    tests = {"photographs": _noisy(natural_images("test").values())}
    if data is not None:
        bsds = BSDS500(Path(data) / "BSDS500", ("test",))
        tests["8 of BSDS500"] = _noisy(bsds[i] for i in range(8))
    return [discs, Setting("photographs", (1, 64, 64), patches, tests)]


def _noisy(images: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(add_noise(clean, NATURAL_SIGMA, i), clean) for i, clean in enumerate(images)]


def tuned_total_variation(setting: Setting) -> TotalVariation:
    """The weight and the smoothing with the least squared error on the training pairs."""
    best: tuple[float, TotalVariation] | None = None
    b, x_true = (torch.stack(column) for column in zip(*(setting.pairs[i] for i in range(SAMPLES)), strict=True))
    for smoothing in SMOOTHINGS:
        problem = lr.LowerLevelProblem(Identity(setting.shape), TotalVariation(0.08, smoothing))
        tune_total_variation(problem, setting.pairs, SAMPLES, 1e-3)
        loss = float((lr.solve(problem, b, TOLERANCE).x - x_true).double().square().sum())
        if best is None or loss < best[0]:
            best = (loss, copy.deepcopy(problem.regularizer))  # type: ignore[arg-type]
    assert best is not None
    return best[1]


def learn(setting: Setting, positions: int, size: int, updates: int) -> LearnedTotalVariation:
    """Kernels and weights by L-BFGS on the training pairs, with the smoothing and from the weight of total variation;
    certified audits watch the hypergradients."""
    assert setting.variation is not None
    weight, smoothing = float(setting.variation.weight.detach()), setting.variation.smoothing
    regularizer = LearnedTotalVariation(positions, size, weight, smoothing)
    problem = lr.LowerLevelProblem(Identity(setting.shape), regularizer)
    result = lr.train(problem, setting.pairs, minutes=60, optimizer="lbfgs", samples=SAMPLES, updates=updates)
    audits = [row["relative_error_bound"] for row in result.rows if "relative_error_bound" in row]
    worst = f", relative error of hypergradients at most {max(audits):.2g} in {len(audits)} audits" if audits else ""
    setting.notes.append(f"{setting.name}, positions: {positions}: {result.updates} updates{worst}.")
    print(setting.notes[-1], f"{result.seconds:.0f} s", flush=True)
    return regularizer


def measure(regularizer: Regularizer, pairs: list[tuple[Tensor, Tensor]]) -> tuple[float, bool]:
    """Mean PSNR, and whether every reconstruction is certified to the tolerance."""
    total, certified = 0.0, True
    for noisy, clean in pairs:
        solution = denoise(regularizer, noisy[None], TOLERANCE)
        certified &= bool((solution.error_bound <= TOLERANCE).all())
        total += psnr(solution.x[0], clean)
    return total / len(pairs), certified


def psnr(x: Tensor, clean: Tensor) -> float:
    return -10.0 * math.log10(float((x - clean).double().square().mean()))


def anisotropy(regularizer: Regularizer) -> float:
    """Energy per length of antialiased straight edges between 0 and 1, the largest over the smallest of all angles."""
    terms = copy.deepcopy(regularizer).double().saddle_terms((1, EDGE_SIDE, EDGE_SIDE))
    middle = EDGE_SIDE / 2
    window = _pixel_means((_fine_distance(EDGE_SIDE, middle, middle) < EDGE_RADIUS).double())
    at = (torch.arange(8 * EDGE_SIDE, dtype=torch.float64) + 0.5) / 8 - middle
    energies = []
    for k in range(EDGE_ANGLES):
        angle = 2.0 * math.pi * k / EDGE_ANGLES
        edge = _pixel_means((math.sin(angle) * at[:, None] + math.cos(angle) * at[None, :] > 0).double())
        with torch.no_grad():
            density = terms.potential.density(terms.operator(edge[None, None]))
        energies.append(float((density.reshape(-1, EDGE_SIDE, EDGE_SIDE).sum(0) * window).sum()))
    return max(energies) / min(energies)


def rows_of(setting: Setting) -> list[dict[str, Any]]:
    assert setting.variation is not None
    smoothing, weight = setting.variation.smoothing, float(setting.variation.weight.detach())
    compared: dict[str, Regularizer] = {f"forward differences, weight {weight:.3g}": setting.variation}
    for (positions, size), regularizer in setting.learned.items():
        plural = "position" if positions == 1 else "positions"
        compared[f"learned, {positions} {plural}, kernels {size}x{size}"] = regularizer
    rows = []
    for name, regularizer in compared.items():
        row: dict[str, Any] = {"learned on": setting.name, "total variation": name, "smoothing": f"{smoothing:g}"}
        row["edges, largest over smallest"] = f"{anisotropy(regularizer):.3f}"
        for test, pairs in setting.tests.items():
            found, certified = measure(regularizer, pairs)
            row["measured on"] = f"{row['measured on']}; {test}" if "measured on" in row else test
            text = f"{found:.2f}" + ("" if certified else " (not certified)")
            row["PSNR [dB]"] = f"{row['PSNR [dB]']}; {text}" if "PSNR [dB]" in row else text
        rows.append(row)
        print(row, flush=True)
    return rows


def draw(found: list[Setting], file: Path) -> None:
    """A disc denoised by both, and the kernels learned for discs and for photographs."""
    from matplotlib.figure import Figure

    discs = found[0]
    best = LEARNED[-1]
    noisy, clean = discs.tests["100 discs"][_shown(discs, best)]
    assert discs.variation is not None
    forward, learned = (denoise(r, noisy[None], TOLERANCE).x[0] for r in (discs.variation, discs.learned[best]))
    figure = Figure(figsize=(12, 9.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[6.3, 3.3])
    panels = upper.subplots(2, 4)
    titles = (f"noisy: {psnr(noisy, clean):.2f} dB", f"forward differences: {psnr(forward, clean):.2f} dB",
              f"learned: {psnr(learned, clean):.2f} dB", "clean")  # fmt: skip
    for axes, title, image in zip(panels[0], titles, (noisy, forward, learned, clean), strict=True):
        axes.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=11)
    limit = float((forward - clean).abs().max())
    for axes, title, image in zip(
        panels[1, 1:3], ("error, forward differences", "error, learned"), (forward, learned), strict=True
    ):
        shown = axes.imshow((image - clean)[0].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_title(title, fontsize=11)
    upper.colorbar(shown, cax=panels[1, 3].inset_axes((0.0, 0.05, 0.06, 0.9)))
    for axes in panels.flat:
        axes.set_axis_off()
    for part, setting in zip(lower.subfigures(1, 2), found, strict=True):
        _draw_kernels(part, setting, best)
    figure.savefig(file, dpi=110)


def _shown(discs: Setting, best: tuple[int, int]) -> int:
    """The disc of median gain."""
    assert discs.variation is not None
    gains = []
    for noisy, clean in discs.tests["100 discs"]:
        pair = (denoise(r, noisy[None], TOLERANCE).x[0] for r in (discs.learned[best], discs.variation))
        learned, forward = (psnr(x, clean) for x in pair)
        gains.append(learned - forward)
    return int(torch.tensor(gains).argsort()[len(gains) // 2])


def _draw_kernels(part: Any, setting: Setting, best: tuple[int, int]) -> None:
    regularizer = setting.learned[best]
    kernels, weights = regularizer.effective_kernels.detach(), regularizer.weights.detach()
    part.suptitle(f"kernels learned on {setting.name}", fontsize=12)
    panels = part.subplots(2, kernels.shape[1], squeeze=False)
    limit = float(kernels.abs().max())
    for k, column in enumerate(weights.argsort(descending=True).tolist()):
        for direction, axes in enumerate(panels[:, k]):
            shown = axes.imshow(kernels[direction, column].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes.set_xticks([])
            axes.set_yticks([])
            if k == 0:
                axes.set_ylabel(("vertical", "horizontal")[direction], fontsize=10)
        panels[0, k].set_title(f"weight {float(weights[column]):.3f}", fontsize=10)
    part.colorbar(shown, ax=panels, fraction=0.03)


def main() -> None:
    options = arguments(
        __doc__.splitlines()[0],
        data={"help": "folder that holds BSDS500, measured too"},
        updates={"type": int, "default": 30, "help": "of the upper level, at most"},
        quick={"updates": 1, "SAMPLES": 2, "HELD_OUT": 2, "LEARNED": ((1, 5),), "SMOOTHINGS": (1e-2,)},
        figure={"default": str(ROOT / "docs" / "learned_tv.png"), "help": "PNG file"},
    )
    found, rows = settings(options.data), []
    for setting in found:
        torch.manual_seed(0)
        setting.variation = tuned_total_variation(setting)
        for positions, size in LEARNED:
            setting.learned[positions, size] = learn(setting, positions, size, options.updates)
        rows += rows_of(setting)
    if options.record or options.figure != str(ROOT / "docs" / "learned_tv.png"):
        draw(found, Path(options.figure))
    command = "python benchmarks/learned_total_variation.py" + (" --data DIR" if options.data else "") + " --record"
    text = f"""Denoising with ½‖x - b‖² + R(x), R total variation by forward differences or a learned discretisation
(`LearnedTotalVariation`, "replicate"): interpolation kernels that sum to one, and weights. Discs: {SIDE} x {SIDE}
pixels, antialiased, random centre, radius (6 to 18) and grey values, noise {DISC_SIGMA}; photographs: patches of 64 x
64 pixels, noise 25/255. {SAMPLES} training pairs each, at most {options.updates} updates of L-BFGS; weight and
smoothing of forward differences are the best ones on the same pairs, the smoothing of the learned ones is the same.
Held-out images, all reconstructions certified to a root-mean-square error of {TOLERANCE:g}. *Edges*: energy per length
of antialiased straight edges at {EDGE_ANGLES} angles; 1 would be isotropic. docs/learned_tv.png shows a disc and the
kernels."""
    title = "Learned discretisations of total variation"
    notes = [note for setting in found for note in setting.notes]
    finish(Table("learned_total_variation", title, command, text, rows, notes=notes, order=70), options)


if __name__ == "__main__":
    main()
