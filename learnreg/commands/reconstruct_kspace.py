"""Reconstructing measured k-space: files in, complex images in the units of the measurement out, with error bounds.

A model was learned for magnitudes in [0, 1]: k-space is divided by the largest magnitude of its zero-filled image, and
the reconstruction multiplied by it.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from learnreg.commands.image_inputs import files_of
from learnreg.commands.image_outputs import (
    Examined,
    Reconstructed,
    Written,
    each_reconstructed,
    stored_error,
    write_png,
)
from learnreg.commands.reconstruct_options import KSpaceOptions
from learnreg.datasets import KSpace, estimate_coil_maps, read_kspace
from learnreg.errors import DataError, ShapeError
from learnreg.linear.complex_channels import as_channels, as_complex
from learnreg.models.extras import require
from learnreg.models.model import Model
from learnreg.models.tensor_files import write_atomically
from learnreg.operators import CartesianMRI
from learnreg.report.comparison import magnitude
from learnreg.solvers.solve import check_tolerance, solve

__all__ = ["KSpaceReconstructor"]

_FILES = frozenset({".npy", ".h5", ".hdf5", ".hdf", ".mrd"})
_TOLERANCE = 1e-3
_CALIBRATION = 24
_SUMS = 1.0 + 1e-9


@dataclass(frozen=True)
class KSpaceReconstructor:
    """Reconstructs files of k-space with a model, measured with any lines, coils and sides.

    options: what the files hold. notes: what a user has to know of the outputs.
    """

    model: Model
    options: KSpaceOptions = field(default_factory=KSpaceOptions)
    notes: tuple[str, ...] = (
        ".npy files hold complex images in the units of the k-space, for an orthonormal transform; .png files their "
        "magnitude, white being the largest of the zero-filled image",
    )

    def run(
        self, inputs: Sequence[Path], out: Path, tolerance: float | None = None
    ) -> tuple[list[Examined], Iterator[Reconstructed]]:
        """The files, folders searched but not their sub-folders; and one reconstruction after the other, each written
        to ``out``/<name>.npy, complex64 (height, width), and <name>.png; <name>_000 and so on where a file holds
        several slices.

        All inputs are read before the first is reconstructed, so that a bad one stops the command at once.
        ``tolerance``: root-mean-square error of real and imaginary parts, where 1 is the largest magnitude; 1e-3 by
        default. Errors of files are root mean squares over pixels of the modulus of the difference, with sensitivities
        as they were given or estimated.

        Raises
        ------
        ShapeError: sensitivities of another shape. DataError: unreadable files, NaN, nothing measured.
        ConfigError: outputs of one name, or that would replace an input.
        """
        require("PIL.Image", "writing PNG files", "pillow")
        goal = check_tolerance(_TOLERANCE if tolerance is None else tolerance)
        paths = files_of(inputs, _FILES)
        return each_reconstructed(paths, out, self._examine, partial(self._all, tolerance=goal))

    def _examine(self, path: Path) -> Examined:
        kspace = read_kspace(path, self.options.selection)
        slices, coils = kspace.data.shape[:2]
        for index in range(slices):
            self._measurement(kspace, index, path)
        measured = f"{int(kspace.lines.sum())} of {len(kspace.lines)} lines measured, {coils} coil{'s' * (coils > 1)}"
        return Examined(path, (measured,), (), slices)

    @cached_property
    def _given_maps(self) -> Tensor:
        assert self.options.coil_maps is not None
        return read_kspace(self.options.coil_maps).data

    def _maps(self, kspace: KSpace, index: int, path: Path) -> Tensor | None:
        """Sensitivities of a slice; None for a single coil without any."""
        shape = tuple(kspace.data.shape[1:])
        if (given := self.options.coil_maps) is not None:
            maps = self._given_maps
            if tuple(maps.shape[1:]) != shape or len(maps) not in (1, len(kspace.data)):
                raise ShapeError(
                    f"{given}: sensitivities {tuple(maps.shape)}, but {path} holds {len(kspace.data)} slices "
                    f"of (coils, H, W) = {shape}."
                )
            return maps[index % len(maps)]
        if shape[0] == 1:
            return None
        data = kspace.data[index]
        return estimate_coil_maps(data, min(_CALIBRATION, _full_middle((data != 0).any(0).any(0), index, path)))

    def _measurement(self, kspace: KSpace, index: int, path: Path) -> tuple[CartesianMRI, Tensor, float]:
        """The operator of a slice, its k-space over the scale in float64, and the scale: the largest magnitude of the
        zero-filled image."""
        if not bool(kspace.data[index].any()):
            raise DataError(f"slice {index} is 0 everywhere.", path, "Leave it out.")
        maps = self._maps(kspace, index, path)
        operator = CartesianMRI(kspace.mask, maps, (2, *kspace.data.shape[-2:]))
        data = kspace.data[index] if maps is not None else kspace.data[index, 0]
        exact = as_channels(data[None].to(torch.complex128))
        scale = float(magnitude(operator.approximate_inverse(exact)[0]).max())
        if not 0.0 < scale < math.inf:
            raise DataError(
                f"slice {index}: the largest magnitude of its zero-filled image is {scale:g}.",
                path,
                "Check its unit and the sensitivities.",
            )
        return operator, exact / scale, scale

    def _all(self, known: Examined, outputs: Sequence[Path], tolerance: float) -> Iterator[Reconstructed]:
        kspace = read_kspace(known.path, self.options.selection)
        if len(kspace.data) != len(outputs):
            raise DataError("its content changed while it was used.", known.path)
        for index, output in enumerate(outputs):
            yield self._one(known, kspace, index, output, tolerance)

    def _one(self, known: Examined, kspace: KSpace, index: int, output: Path, tolerance: float) -> Reconstructed:
        operator, exact, scale = self._measurement(kspace, index, known.path)
        b = exact.float()
        problem = self.model.problem(operator=operator)
        started = time.perf_counter()
        solution = solve(problem, b, tolerance)
        seconds = time.perf_counter() - started
        rounding = float((b - exact).square().mean().sqrt())
        bound, error = stored_error(solution, problem, problem.data_term, rounding)
        x, sides = solution.x[0], kspace.image_sides
        top, left = (n // 2 - m // 2 for n, m in zip(x.shape[1:], sides, strict=True))
        bound *= math.sqrt(x.numel() / math.prod(sides)) * _SUMS
        x = x[:, top : top + sides[0], left : left + sides[1]]
        files = [_write_complex(output.with_suffix(".npy"), x, bound, scale), write_png(output, magnitude(x), 8, bound)]
        return Reconstructed.of(known, files, solution, error, seconds, tolerance)


def _write_complex(path: Path, x: Tensor, error_bound: float, scale: float) -> Written:
    """scale · x in complex64; ``error_bound`` is that of x."""
    exact = as_complex(scale * x.detach().cpu().double()[None])[0]
    stored, buffer = exact.to(torch.complex64), io.BytesIO()
    np.save(buffer, stored.numpy())
    write_atomically(path, buffer.getvalue(), DataError)
    moved = float((stored.to(torch.complex128) - exact).abs().square().mean().sqrt())
    return Written(str(path), (scale * error_bound + moved) * _SUMS)


def _full_middle(lines: Tensor, index: int, path: Path) -> int:
    """How many lines of a slice around the middle are all measured."""
    count = 0
    while count < len(lines):
        first = (len(lines) - count) // 2
        if not bool(lines[first : first + count + 1].all()):
            break
        count += 1
    if count < 4:
        raise DataError(
            f"{count} lines in the middle of slice {index} are all measured, too few to estimate sensitivities of "
            "coils from.",
            path,
            "Pass measured ones with --coil-maps FILE.",
        )
    return count
