"""Random phantoms that resemble slices of a body: ellipses with shading, fine texture and small bright details."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.datasets.seeding import item_generator
from learnreg.datasets.tomography.ellipses import Canvas, Ellipse, Texture
from learnreg.linear.arguments import check_flag, whole_number

__all__ = ["ellipse_phantom", "ellipse_phantoms"]

_MOST, _LARGEST = 10**6, 2**15
"""Beyond what memory holds; larger numbers are slips."""

# Values on the scale of attenuation, where 0 is air, water is near 0.45 and dense bone is 1.
_LUNG, _FAT, _MUSCLE, _BONE, _MARROW = 0.09, 0.38, 0.46, 0.88, 0.58


def ellipse_phantoms(count: int, size: int = 128, seed: int = 0, start: int = 0) -> Tensor:
    """Phantoms ``start`` to ``start + count - 1``, shape (count, 1, size, size), float32 in [0, 1].

    Parameters
    ----------
    seed: of the whole sequence.

    Raises
    ------
    ConfigError: ``count`` is not positive, ``size`` is below 16 or ``start`` is negative.
    """
    whole_number(count, "ellipse_phantoms(count)", most=_MOST)
    whole_number(start, "ellipse_phantoms(start)", least=0)
    return torch.stack([ellipse_phantom(index, size, seed) for index in range(start, start + count)])


def ellipse_phantom(index: int, size: int = 128, seed: int = 0, held_out: bool = False) -> Tensor:
    """One phantom, shape (1, size, size), float32 in [0, 1]: a chest or an abdomen made of 70 to 130 ellipses.

    0 outside a body that lies inside the disc around the image. Regions have gradients of up to 24 % from side to side,
    edges up to 0.02 image sides wide (as slices of some thickness show slanted surfaces), and a speckled or streaky
    texture whose standard deviation is 2 to 5 % of their value before sampling (pixels average over waves that are
    shorter); bones have bright shells, lungs vessels, and calcifications are one to three pixels of 128 wide. Another
    ``size`` samples the same object.

    ``held_out`` chooses another sequence, which has no phantom in common with the first.
    ``seed`` and ``index`` alone decide the phantom, on every machine up to the rounding of elementary functions.

    Raises
    ------
    ConfigError: ``size`` is below 16 or ``index`` is negative.
    """
    whole_number(size, "ellipse_phantom(size)", least=16, most=_LARGEST)
    whole_number(index, "ellipse_phantom(index)", least=0)
    check_flag(held_out, "ellipse_phantom(held_out)")
    sequence = "held-out ellipses" if held_out else "ellipses"
    image = _Anatomy(size, item_generator(sequence, seed, index)).draw()
    return torch.from_numpy(np.clip(image, 0.0, 1.0).astype(np.float32)).unsqueeze(0)


def _uniform_numbers(generator: torch.Generator) -> Iterator[float]:
    """Numbers in [0, 1): integers divided by a power of two, hence the same on every machine."""
    while True:
        yield from torch.rand(512, generator=generator, dtype=torch.float64).tolist()


class _Anatomy:
    """Draws one phantom; every random number comes from ``generator`` in a fixed order."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.generator = generator
        self.numbers = _uniform_numbers(generator)
        bends = (self.waves(6, 2.0, 6.0), self.waves(6, 2.0, 6.0))
        self.canvas = Canvas(size, self.uniform(0.008, 0.018), bends)
        self.body = Ellipse(
            self.uniform(-0.02, 0.02),
            self.uniform(-0.02, 0.02),
            self.uniform(0.80, 0.90),
            self.uniform(0.56, 0.72),
            self.uniform(-0.08, 0.08),
        )

    def draw(self) -> np.ndarray[Any, Any]:
        self.wall()
        if self.uniform() < 0.5:
            self.chest()
        else:
            self.abdomen()
        self.spine()
        self.calcifications()
        return self.canvas.image

    # ---- random numbers ----------------------------------------------------------------------------------------------

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * next(self.numbers)

    def count(self, low: int, high: int) -> int:
        return low + int((high - low + 1) * next(self.numbers))

    def waves(self, number: int, lowest: float, highest: float, direction: float = 0.0, spread: float = 1.0) -> Texture:
        """Plane waves whose angular frequencies have lengths in [lowest, highest] and directions within ``spread``
        half-turns of ``direction``."""
        draws = torch.rand(3, number, generator=self.generator, dtype=torch.float64).numpy()
        lengths = lowest * (highest / lowest) ** draws[0]
        angles = direction + math.pi * spread * (draws[1] - 0.5)
        return Texture(lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1), 2.0 * math.pi * draws[2])

    def texture(self) -> Texture:
        """Speckle, or streaks in one direction, with wavelengths from 0.02 to 0.12 (1.3 to 8 pixels of 128)."""
        spread = self.uniform(0.08, 0.3) if self.uniform() < 0.4 else 1.0
        return self.waves(48, 52.0, 310.0, self.uniform(0.0, math.pi), spread)

    # ---- painting ----------------------------------------------------------------------------------------------------

    def organ(self, ellipse: Ellipse, value: float, within: Ellipse | None = None, softness: float = 0.04) -> None:
        """A region with a gradient, a texture and an edge of some width up to ``softness``."""
        shading = (self.uniform(-0.12, 0.12), self.uniform(-0.12, 0.12))
        contrast, softness = self.uniform(0.02, 0.05), self.uniform(0.0, min(softness, ellipse.a, ellipse.b))
        self.canvas.paint(ellipse, value, shading, self.texture(), contrast, within, softness)

    def bone(self, ellipse: Ellipse, shell: float) -> None:
        """A bright shell around marrow."""
        self.canvas.paint(ellipse, _BONE * self.uniform(0.9, 1.08), within=self.flesh)
        self.organ(ellipse.grown(-shell), _MARROW * self.uniform(0.9, 1.25), self.flesh, softness=0.01)

    def inside(self, ellipse: Ellipse, reach: float = 0.9) -> tuple[float, float]:
        """A point spread evenly over the middle of an ellipse."""
        radius, angle = reach * math.sqrt(self.uniform()), self.uniform(0.0, 2.0 * math.pi)
        return ellipse.place(radius * math.cos(angle), radius * math.sin(angle))

    # ---- parts of the body -------------------------------------------------------------------------------------------

    def wall(self) -> None:
        """Skin, fat and muscle."""
        self.canvas.paint(self.body, 0.44)
        self.flesh = self.body.grown(-0.015)
        self.organ(self.flesh, _FAT, softness=0.01)
        fat = self.uniform(0.03, 0.09)
        self.organ(self.body.grown(-fat), _MUSCLE)
        self.cavity = self.body.grown(-fat - self.uniform(0.05, 0.09))

    def chest(self) -> None:
        """Lungs with vessels, the heart with its chambers, the windpipe, ribs."""
        self.organ(self.cavity, 0.42)
        for side in (-1.0, 1.0):
            x, y = self.cavity.place(side * self.uniform(0.50, 0.54), self.uniform(-0.06, 0.06))
            lung = Ellipse(
                x, y, 0.42 * self.cavity.a, 0.85 * self.cavity.b, self.cavity.angle + side * self.uniform(0.0, 0.2)
            )
            self.organ(lung, _LUNG * self.uniform(0.7, 1.4))
            self.vessels(lung, side)
        x, y = self.cavity.place(self.uniform(0.02, 0.2), self.uniform(-0.35, -0.1))
        heart = Ellipse(x, y, self.uniform(0.2, 0.27), self.uniform(0.2, 0.27), self.uniform(0.0, math.pi))
        self.organ(heart, 0.46)
        for _ in range(self.count(2, 4)):
            x, y = self.inside(heart, 0.5)
            self.organ(Ellipse(x, y, self.uniform(0.06, 0.11), self.uniform(0.06, 0.11)), self.uniform(0.48, 0.62))
        x, y = self.cavity.place(self.uniform(-0.05, 0.02), self.uniform(0.2, 0.3))
        self.canvas.paint(Ellipse(x, y, 0.04, self.uniform(0.03, 0.045)), 0.5)
        self.canvas.paint(Ellipse(x, y, 0.028, 0.025), 0.01)
        self.ribs(self.count(9, 14))

    def vessels(self, lung: Ellipse, side: float) -> None:
        """Branches that run away from the inner side of the lung and become thinner."""
        root_x, root_y = lung.place(-0.7 * side, 0.0)
        for _ in range(self.count(20, 34)):
            x, y = self.inside(lung, 0.95)
            distance = math.hypot(x - root_x, y - root_y)
            width = self.uniform(0.006, 0.02) * max(0.4, 1.0 - distance)
            direction = math.atan2(y - root_y, x - root_x) + self.uniform(-0.5, 0.5)
            branch = Ellipse(x, y, self.uniform(0.01, 0.1), width, direction)
            self.canvas.paint(branch, self.uniform(0.25, 0.48), within=lung)

    def ribs(self, number: int) -> None:
        """Bones along the wall of the cavity."""
        first = self.uniform(0.0, 2.0 * math.pi)
        for rib in range(number):
            angle = first + 2.0 * math.pi * (rib + self.uniform(-0.25, 0.25)) / number
            if math.sin(angle) > 0.9:  # where the spine is
                continue
            around = self.cavity.grown(0.025)
            x, y = around.place(math.cos(angle), math.sin(angle))
            tangent = math.atan2(around.b * math.cos(angle), -around.a * math.sin(angle)) + around.angle
            self.bone(Ellipse(x, y, self.uniform(0.04, 0.12), self.uniform(0.022, 0.032), tangent), 0.01)

    def abdomen(self) -> None:
        """Fat with the liver, spleen, kidneys, bowels and the great vessels in it."""
        self.organ(self.cavity, 0.38)
        side = -1.0 if self.uniform() < 0.8 else 1.0
        x, y = self.cavity.place(0.46 * side, self.uniform(-0.25, -0.1))
        liver = Ellipse(x, y, self.uniform(0.30, 0.36), self.uniform(0.28, 0.36), self.uniform(-0.4, 0.4))
        self.organ(liver, 0.5, within=self.cavity)
        self.spots(liver, self.count(8, 16))
        x, y = self.cavity.place(-0.7 * side, self.uniform(-0.15, 0.05))
        spleen = Ellipse(x, y, self.uniform(0.1, 0.14), self.uniform(0.18, 0.24), side * self.uniform(0.1, 0.5))
        self.organ(spleen, 0.52, within=self.cavity)
        for _ in range(self.count(8, 15)):
            self.bowel(*self.cavity.place(self.uniform(-0.3, 0.55) * -side, self.uniform(-0.75, 0.15)))
        for kidney_side in (-1.0, 1.0):
            self.kidney(*self.cavity.place(0.45 * kidney_side, self.uniform(0.38, 0.52)))
        for x in (-0.08, 0.07):
            x, y = self.cavity.place(x + self.uniform(-0.02, 0.02), self.uniform(0.24, 0.3))
            self.organ(Ellipse(x, y, self.uniform(0.04, 0.055), self.uniform(0.035, 0.05)), self.uniform(0.47, 0.6))
        self.ribs(self.count(4, 8))

    def spots(self, organ: Ellipse, number: int) -> None:
        """Vessels and lesions of low contrast."""
        for _ in range(number):
            x, y = self.inside(organ, 0.85)
            shape = Ellipse(x, y, self.uniform(0.01, 0.07), self.uniform(0.008, 0.025), self.uniform(0.0, math.pi))
            self.canvas.paint(shape, 0.5 * (1.0 + self.uniform(-0.12, 0.16)), within=organ)

    def bowel(self, x: float, y: float) -> None:
        """A loop with a wall, filled with fluid, contrast medium or gas."""
        loop = Ellipse(x, y, self.uniform(0.05, 0.11), self.uniform(0.04, 0.08), self.uniform(0.0, math.pi))
        self.organ(loop, 0.47, within=self.cavity)
        kind, inner = self.uniform(), loop.grown(-0.016)
        if kind < 0.2:
            self.canvas.paint(inner, 0.02, within=self.cavity)
        else:
            self.organ(inner, 0.42 if kind < 0.6 else self.uniform(0.6, 0.85), within=self.cavity)

    def kidney(self, x: float, y: float) -> None:
        kidney = Ellipse(x, y, self.uniform(0.1, 0.13), self.uniform(0.12, 0.16), self.uniform(-0.4, 0.4))
        self.organ(kidney, self.uniform(0.54, 0.62))
        for _ in range(self.count(5, 8)):
            pyramid = Ellipse(*self.inside(kidney, 0.65), self.uniform(0.015, 0.03), self.uniform(0.012, 0.02))
            self.canvas.paint(pyramid, self.uniform(0.46, 0.52))

    def spine(self) -> None:
        """A vertebra with its canal and processes."""
        x, y = self.body.place(self.uniform(-0.02, 0.02), self.uniform(0.44, 0.5))
        for side in (-1.0, 1.0):
            angle = side * self.uniform(0.35, 0.6)
            self.bone(Ellipse(x + 0.12 * side, y + 0.12, self.uniform(0.09, 0.12), 0.026, angle), 0.009)
        self.bone(Ellipse(x, y + 0.2, 0.022, self.uniform(0.05, 0.08), self.uniform(-0.1, 0.1)), 0.008)
        self.bone(Ellipse(x, y + 0.11, 0.075, 0.065), 0.015)
        self.canvas.paint(Ellipse(x, y + 0.115, 0.048, 0.042), 0.45)
        self.bone(Ellipse(x, y, self.uniform(0.11, 0.135), self.uniform(0.085, 0.105)), 0.016)

    def calcifications(self) -> None:
        """Small details of high contrast."""
        for _ in range(self.count(4, 10)):
            x, y = self.inside(self.cavity, 0.8)
            self.canvas.paint(
                Ellipse(x, y, self.uniform(0.006, 0.02), self.uniform(0.006, 0.014)), self.uniform(0.8, 1.0)
            )
