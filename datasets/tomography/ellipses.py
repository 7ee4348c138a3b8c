"""Drawing shaded and textured ellipses on a grid of pixels, antialiased."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Canvas", "Ellipse", "Texture"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Ellipse:
    """An ellipse in the square [-1, 1]², x to the right and y downwards.

    Parameters
    ----------
    x, y: centre.
    a, b: semi-axes.
    angle: of the first axis against x, in radians.
    """

    x: float
    y: float
    a: float
    b: float
    angle: float = 0.0

    def grown(self, amount: float) -> Ellipse:
        """The ellipse whose semi-axes are longer by ``amount`` (shorter, if negative)."""
        return Ellipse(self.x, self.y, self.a + amount, self.b + amount, self.angle)

    def place(self, u: float, v: float) -> tuple[float, float]:
        """The point (u, v) in units of the semi-axes, (0, 0) being the centre, in the coordinates of the square."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return self.x + self.a * u * cosine - self.b * v * sine, self.y + self.a * u * sine + self.b * v * cosine


@dataclass(frozen=True)
class Texture:
    """A random field of unit variance before sampling: a sum of plane waves, each averaged over the pixels exactly.

    Parameters
    ----------
    frequencies: (waves, 2) angular frequencies along x and y, in radians per unit of the square [-1, 1]².
    phases: (waves,).
    """

    frequencies: Array
    phases: Array

    def sample(self, x: Array, y: Array, pitch: float) -> Array:
        """Averages over the pixels of side ``pitch`` centred at ``x`` (columns) and ``y`` (rows): (rows, columns)."""
        attenuation = np.sinc(self.frequencies * pitch / (2.0 * math.pi)).prod(axis=1)
        along_x = self.frequencies[:, :1] * x
        along_y = self.frequencies[:, 1:] * y + self.phases[:, None]
        scale = (attenuation * math.sqrt(2.0 / len(self.phases)))[:, None]
        # cos(p + q), summed over the waves: two products of matrices in place of a cosine per wave and pixel.
        field: Array = np.cos(along_y).T @ (scale * np.cos(along_x)) - np.sin(along_y).T @ (scale * np.sin(along_x))
        return field


class Canvas:
    """A square image of ``size`` x ``size`` pixels on [-1, 1]², 0 at first, on which ellipses are painted in order.

    Parameters
    ----------
    size: pixels of a side.
    bend, bends: the coordinates are displaced by ``bend`` times these two fields, of at most 8 waves, which turns
        ellipses into the shapes of organs.
    """

    def __init__(self, size: int, bend: float = 0.0, bends: tuple[Texture, Texture] | None = None) -> None:
        self.pitch = 2.0 / size
        self.centres = (np.arange(size) + 0.5) * self.pitch - 1.0
        self.x = np.broadcast_to(self.centres, (size, size))
        self.y = np.broadcast_to(self.centres[:, None], (size, size))
        if bends is not None:
            self.x = self.x + bend * bends[0].sample(self.centres, self.centres, self.pitch)
            self.y = self.y + bend * bends[1].sample(self.centres, self.centres, self.pitch)
        self.largest_bend = 4.0 * bend  # 8 waves of amplitude 1/2
        self.image = np.zeros((size, size))

    def paint(
        self,
        ellipse: Ellipse,
        value: float,
        shading: tuple[float, float] = (0.0, 0.0),
        texture: Texture | None = None,
        contrast: float = 0.0,
        within: Ellipse | None = None,
        softness: float = 0.0,
    ) -> None:
        """Cover the ellipse with value · (1 + shading · (u, v) + contrast · texture), where u and v run from -1 to 1
        along its axes.

        Pixels on the edge are mixed by the share that is covered. ``within`` clips to another ellipse; ``softness``
        makes the edge a ramp of that width, as a slice of some thickness shows a slanted surface.
        """
        rows, columns = self._window(ellipse.grown(0.5 * softness))
        x, y = self.x[rows, columns], self.y[rows, columns]
        if x.size == 0:
            return
        u, v, cover = _coverage(ellipse, x, y, self.pitch, softness)
        if within is not None:
            cover = cover * _coverage(within, x, y, self.pitch)[2]
        factor = 1.0 + shading[0] * u + shading[1] * v
        if texture is not None:
            factor = factor + contrast * texture.sample(self.centres[columns], self.centres[rows], self.pitch)
        target = self.image[rows, columns]
        target += cover * (value * factor - target)

    def _window(self, ellipse: Ellipse) -> tuple[slice, slice]:
        """The pixels that the ellipse can touch."""
        cosine, sine = math.cos(ellipse.angle), math.sin(ellipse.angle)
        margin = 2.0 * self.pitch + self.largest_bend
        half_width = math.hypot(ellipse.a * cosine, ellipse.b * sine) + margin
        half_height = math.hypot(ellipse.a * sine, ellipse.b * cosine) + margin
        return self._span(ellipse.y, half_height), self._span(ellipse.x, half_width)

    def _span(self, centre: float, half: float) -> slice:
        first = math.floor((centre - half + 1.0) / self.pitch)
        last = math.ceil((centre + half + 1.0) / self.pitch)
        return slice(max(first, 0), max(last, 0))


def _coverage(ellipse: Ellipse, x: Array, y: Array, pitch: float, softness: float = 0.0) -> tuple[Array, Array, Array]:
    """Coordinates in units of the semi-axes, and the share of each pixel that the ellipse covers.

    The share is that of a straight edge at the distance of the ellipse to first order (exact for discs).
    """
    cosine, sine = math.cos(ellipse.angle), math.sin(ellipse.angle)
    dx, dy = x - ellipse.x, y - ellipse.y
    # Thinner than a pixel: drawn as wide as one and paler, which keeps its area up to the ends.
    a, b = max(ellipse.a, 0.5 * pitch), max(ellipse.b, 0.5 * pitch)
    strength = ellipse.a * ellipse.b / (a * b)
    u, v = (cosine * dx + sine * dy) / a, (cosine * dy - sine * dx) / b
    radius = np.hypot(u, v)
    slope = np.hypot(u / a, v / b)
    per_radius = np.divide(radius, slope, out=np.full_like(radius, min(a, b)), where=slope > 0)
    distance = (1.0 - radius) * per_radius
    return u, v, strength * np.clip(distance / (pitch + softness) + 0.5, 0.0, 1.0)
