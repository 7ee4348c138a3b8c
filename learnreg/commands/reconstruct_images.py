"""Denoising files: images or arrays in, images with error bounds out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from learnreg.commands.fitness import in_grey_levels, unfit_image
from learnreg.commands.image_inputs import files_of, read_input
from learnreg.commands.image_outputs import (
    Examined,
    Reconstructed,
    Written,
    output_paths,
    stored_error,
    write_array,
    write_png,
)
from learnreg.datasets import estimate_noise, parse_sigma
from learnreg.errors import ConfigError, DataError, ShapeError
from learnreg.models.extras import require
from learnreg.models.model import Model
from learnreg.solvers.solve import check_tolerance, solve

__all__ = ["Denoiser"]

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy"})
_EXACT_SUFFIXES = frozenset({".npy", ".tif", ".tiff"})  # beside whose PNG there is an array
_COARSE, _FINE = 1e-3, 1e-4
"""Tolerances for outputs of 8 bits, a quarter of whose levels the first is, and for others."""

_SLACK = 1e-3
"""Of the ends of a range of noise levels, which people round."""


class Denoiser:
    """Denoises files with a model.

    Parameters
    ----------
    tolerance: certified root-mean-square error of x; None: 1e-3 for images of 8 bits, 1e-4 for others.
    sigma: the noise level for a model that knows several, "auto" to estimate that of each image; None: the model's, and
        "auto" where it has none of its own.

    Raises
    ------
    ConfigError: a sigma out of range, or for a model that knows one level; no pillow, which writes PNG files.
    """

    def __init__(self, model: Model, tolerance: float | None = None, sigma: str | None = None) -> None:
        require("PIL.Image", "writing PNG files", "pillow")
        if tolerance is not None:
            check_tolerance(tolerance)
        if sigma is not None and not model.conditioned:
            own = "one noise level" if model.noise_level is None else in_grey_levels(model.noise_level)
            raise ConfigError(
                f"--sigma {sigma}: this model was learned for {own} and does not adapt to others; train one for that "
                "level with learnreg train denoise --sigma, or with --noise-conditioned for a range, or take one that "
                "learnreg models lists."
            )
        self.model, self.tolerance = model, tolerance
        self.sigma = model.noise_level if sigma is None or sigma == "auto" else parse_sigma(sigma)
        self.automatic = sigma == "auto" or (model.conditioned and self.sigma is None)

    def run(self, inputs: Sequence[Path], out: Path) -> tuple[list[Examined], Iterator[Reconstructed]]:
        """The files, folders searched but not their sub-folders; and one reconstruction after the other, each written
        to ``out``/<name>.png, with 16 bits where the input has more than 8, and for .npy and TIFF inputs to <name>.npy
        in float32.

        All inputs are read before the first is reconstructed, so that a bad one stops the command at once.

        Raises
        ------
        ConfigError: two inputs with the same name, or an output that would replace an input. DataError: a bad input,
            or an output that cannot be written. ShapeError: an image smaller than the filters.
        """
        paths = files_of(inputs, _SUFFIXES)
        outputs = [output for (output,) in output_paths(paths, [1] * len(paths), out)]
        examined = [self._examine(path) for path in paths]
        return examined, map(self._one, examined, outputs)

    def _examine(self, path: Path) -> Examined:
        found, channels = read_input(path), self.model.regularizer.image_channels
        if len(found.values) < channels:
            raise DataError(
                f"it is grey, and the model is for images of {channels} channels.",
                path,
                "Use a model for grey images, such as denoise-foe; what this one knows of colours does not fit.",
            )
        batch = self._batch(found.values)
        try:
            self.model.problem(tuple(batch.shape[1:])).saddle_terms(found.values.dtype)
        except ShapeError as error:  # smaller than the filters
            raise ShapeError(f"{path}: {error}") from error
        notes, sigma = list(found.notes), self.sigma
        if len(batch) > 1:
            notes.append("its channels are denoised one by one, as the model is for grey images")
        if self.automatic:
            sigma, note = self._estimated(path, found.values)
            notes.append(note)
        warnings = [*unfit_image(found.values, sigma, self.model.conditioned), *self._beyond(sigma)]
        return Examined(path, tuple(notes), tuple(warnings), sigma=sigma)

    def _estimated(self, path: Path, image: Tensor) -> tuple[float, str]:
        """The noise level of an image, as far as the model knows such levels, and what to say of it."""
        estimate = estimate_noise(image)
        if not estimate:
            if self.sigma is None:
                raise DataError("its noise level cannot be estimated.", path, "Pass it: --sigma 10/255, say.")
            return self.sigma, "its noise level cannot be estimated; that of the model is used"
        said = f"its noise level is estimated as {in_grey_levels(estimate)}"
        low, high = self.model.noise_range or (estimate, estimate)
        used = min(max(estimate, low), high)
        if used != estimate:
            said += f", beyond those that the model was learned for; {in_grey_levels(used)} is used"
        return used, said

    def _beyond(self, sigma: float | None) -> list[str]:
        """What speaks against a level that the user named."""
        known = self.model.noise_range
        if known is None or sigma is None or known[0] * (1 - _SLACK) <= sigma <= known[1] * (1 + _SLACK):
            return []
        span = " to ".join(map(in_grey_levels, known))
        return [f"the model was learned for noise from {span}, not for {in_grey_levels(sigma)}"]

    def _one(self, known: Examined, output: Path) -> Reconstructed:
        found = read_input(known.path)
        image, level = found.values, known.sigma if self.model.conditioned else None
        tolerance = self.tolerance or (_COARSE if found.bits == 8 else _FINE)
        batch = self._batch(image)
        problem = self.model.problem(tuple(batch.shape[1:]), noise_level=level)
        started = time.perf_counter()
        solution = solve(problem, batch, tolerance)
        seconds = time.perf_counter() - started
        bound, error = stored_error(solution, problem, problem.data_term, found.rounding)
        files = self._write(known.path, output, found.bits, solution.x.reshape(image.shape), bound)
        return Reconstructed.of(known, files, solution, error, seconds, tolerance)

    def _batch(self, image: Tensor) -> Tensor:
        """As the model takes it: the channels of colours one by one, where it is for grey images."""
        return image[:, None] if self.model.regularizer.image_channels == 1 else image[None]

    def _write(self, path: Path, output: Path, bits: int | None, x: Tensor, bound: float) -> list[Written]:
        """The most accurate file first. PNG files of colours have 8 bits, beside which deeper ones have an array."""
        deep = len(x) > 1 and bits == 16
        files = [write_array(output, x, bound)] if deep or path.suffix.lower() in _EXACT_SUFFIXES else []
        return [*files, write_png(output, x, 8 if deep else bits or 8, bound)]
