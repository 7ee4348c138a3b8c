"""Reconstructing measured sinograms: files in, images in the units of the measurement out, with error bounds.

Units. A model was learned for an image with side s_m and values in [0, 1], b_m = A_m x_m. A scan of the same rays whose
image has the side s, in any unit of length, and attenuation x = V x_m per unit of length measures

    b = A x = (s / s_m) V A_m x_m,    so that    b_m = b s_m / (V s)

is what the model reconstructs; errors scale with V, too.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from learnreg.commands.fitness import unfit_scan
from learnreg.commands.image_inputs import files_of
from learnreg.commands.image_outputs import (
    Examined,
    Reconstructed,
    each_reconstructed,
    stored_error,
    write_array,
    write_png,
)
from learnreg.commands.reconstruct_options import ScanOptions
from learnreg.commands.scenes import Projector
from learnreg.datasets import SinogramStack, line_integrals, read_array, statistical_weights
from learnreg.datasets.files.checks import Mask
from learnreg.datasets.files.sinograms import dead_mask
from learnreg.datasets.tomography.transmission import PHOTON_FLOOR
from learnreg.errors import ConfigError, DataError, ShapeError
from learnreg.lower_level.data_terms import DataTerm, TransmissionLeastSquares, WeightedLeastSquares
from learnreg.lower_level.likelihoods import TransmissionPoisson
from learnreg.models.extras import require
from learnreg.models.model import Model
from learnreg.models.names import stored_geometry
from learnreg.operators import FanBeam2D, ParallelBeam2D
from learnreg.operators.tomography.geometry import Geometry
from learnreg.operators.tomography.geometry_file import beam_of, read_geometry
from learnreg.solvers.solve import check_tolerance, solve

__all__ = ["Reconstructor"]

_DIGITS = 9
"""Of the number of a detector."""

_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})
_SCANS = frozenset({".npy", ".h5", ".hdf5", ".hdf", ".nxs", ".tif", ".tiff"})
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class _Scan:
    """A sinogram in the model's units, (1, 1, angles, detectors), float32, the root-mean-square of what that rounded,
    its statistical weights, and how many rays had no count to speak of."""

    sinogram: Tensor
    rounding: float
    weights: Tensor | None
    floored: int


@dataclass(frozen=True)
class Reconstructor:
    """Reconstructs sinogram files with a model.

    operator: of the scan, in the model's unit of length. length: side of the scan's image in its own unit, over the
    operator's. notes: what a user has to know of the reconstructions so far.
    """

    model: Model
    options: ScanOptions
    operator: Projector
    length: float
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, model: Model, options: ScanOptions) -> Reconstructor:
        """The reconstructor of a model for CT, or with a geometry of one for denoising, too.

        Raises
        ------
        ConfigError: the model is not for projections; a geometry file with errors. DataError: an unreadable one.
        ShapeError: the data term of the model has weights for other views.
        """
        own = stored_geometry(model.config["operator"])
        if own is None and not (model.denoises and options.geometry is not None):
            stored = model.config["operator"]
            what = "the identity" if model.denoises else stored.get("class") or stored["name"]
            raise ConfigError(f"this model is for {what}, not for projections; expected one from learnreg train ct.")
        notes: list[str] = []
        if options.geometry is None:
            assert own is not None
            geometry, length = own, 1.0
        else:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                geometry = read_geometry(options.geometry)
                geometry.warn_if_truncated()
            notes = [f"{options.geometry}: {warning.message}" for warning in caught]
            length = geometry.image_side / (own.image_side if own is not None else 1.0)
            geometry = geometry.scaled(1.0 / length)
        if options.dead_detectors is not None:
            geometry = _without(geometry, options.dead_detectors)
        if dead := len(geometry.dead_detectors):
            notes.append(f"{dead} of {geometry.detectors} detectors are dead: their rays count nothing")
        kernel = model.config["operator"]["kernel"] if options.geometry is None else None
        unchanged = options.geometry is None and geometry == own
        operator = model.operator if unchanged else beam_of(geometry).from_geometry(geometry, kernel=kernel)
        assert isinstance(operator, (ParallelBeam2D, FanBeam2D))
        model.problem(operator=operator)  # weights that do not fit are refused before any file is read
        return cls(model, options, operator, length, notes)

    @property
    def units(self) -> str:
        """A line for people: what the numbers of the outputs are."""
        options = self.options
        unit = "unit of length of the geometry" if options.geometry is not None else "side of the image"
        return f".npy files hold attenuation per {unit}; the model's 1, white in the .png, is {options.model_value:g}"

    def run(
        self, inputs: Sequence[Path], out: Path, tolerance: float | None = None
    ) -> tuple[list[Examined], Iterator[Reconstructed]]:
        """The files, folders searched but not their sub-folders; and one reconstruction after the other, each written
        to ``out``/<name>.npy, float32 in the units of the measurement, and <name>.png, which shows the model's range
        [0, 1]; <name>_000 and so on where a file holds several sinograms.

        All inputs are read before the first is reconstructed, so that a bad one stops the command at once. At any time
        one sinogram is in memory.
        ``tolerance``: root-mean-square error in the model's units, 1e-4 by default.

        Raises
        ------
        ShapeError: images, or sinograms of another shape. DataError: unreadable files, NaN, negative counts.
        ConfigError: outputs of one name, or that would replace an input.
        """
        require("PIL.Image", "writing PNG files", "pillow")
        goal = check_tolerance(_TOLERANCE if tolerance is None else tolerance)
        paths = files_of(inputs, _SCANS)
        return each_reconstructed(paths, out, self._examine, partial(self._all, tolerance=goal))

    def _examine(self, path: Path) -> Examined:
        count = floored = 0

        def sinograms() -> Iterator[Tensor]:
            nonlocal count, floored
            for scan in self._scans(path):
                count, floored = count + 1, floored + scan.floored
                yield scan.sinogram

        warnings = unfit_scan(sinograms(), self.operator)
        note = f"{floored} rays had less than 0.1 counts, which count as 0.1"
        return Examined(path, (note,) if floored else (), tuple(warnings), count)

    def _scans(self, path: Path) -> Iterator[_Scan]:
        """The sinograms of a file, one after the other."""
        if path.suffix.lower() in _IMAGES:
            shape = tuple(self.operator.range_shape)
            raise ShapeError(
                f"{path}: an image, but this model reconstructs sinograms (1, angles, detectors) = {shape}; expected "
                ".npy, HDF5 or TIFF files. To measure a model on images, use learnreg evaluate."
            )
        options = self.options
        stack = SinogramStack(path, options.key, self.operator, options.counts)
        if not options.counts:
            for values in stack:
                yield self._scaled(values)
            return
        assert options.flat is not None
        ignored = dead_mask(self.operator)
        flat, dark = _field(options.flat, ignored), _field(options.dark or "0", ignored)
        for i, values in enumerate(stack):
            yield self._from_counts(values, *(_field_of(field, i, len(stack)) for field in (flat, dark)))

    def _from_counts(self, counts: Tensor, flat: Tensor | float, dark: Tensor | float) -> _Scan:
        found = line_integrals(counts, flat, dark, dead_detectors=self.operator.geometry.dead_detectors)
        weights = self._weights(counts[0], found.values[0], dark)
        return self._scaled(found.values, weights, found.floored)

    def _scaled(self, values: Tensor, weights: Tensor | None = None, floored: int = 0) -> _Scan:
        exact = values.double() / (self.options.model_value * self.length)
        sinogram = exact.float()
        return _Scan(sinogram, float((sinogram - exact).square().mean().sqrt()), weights, floored)

    def _weights(self, counts: Tensor, values: Tensor, dark: Tensor | float) -> Tensor:
        """The noise variance of training over that of each ray, for line integrals without a unit; mean 1 where the
        model does not know the noise of its training."""
        data_term, geometry = self.model.data_term, self.operator.geometry
        dead = geometry.dead_detectors
        if isinstance(data_term, TransmissionPoisson):
            net = (counts.double() - dark).clamp_min(PHOTON_FLOOR) * torch.exp(values.double())
            shares: Tensor = net / float(data_term.photons)
            return shares.index_fill(-1, torch.tensor(dead, dtype=torch.long), 0.0).float()
        if isinstance(data_term, TransmissionLeastSquares):
            reference = float(data_term.inverse_variance(torch.tensor(data_term.reference, dtype=torch.float64)))
            found = statistical_weights(counts, dark, data_term.electronic, normalise=False, dead_detectors=dead)
            return (found / reference).float()
        live = geometry.detectors - len(dead)
        config, mean = self.model.config, float(values.mean()) * geometry.detectors / live
        noise, photons = (float(config.get(name) or 0.0) for name in ("noise", "photons"))
        variance = math.exp(mean) / photons if photons > 0 else (noise * mean) ** 2
        if variance > 0:
            return variance * statistical_weights(counts, dark, normalise=False, dead_detectors=dead).float()
        return statistical_weights(counts, dark, dead_detectors=dead).float()

    def _all(self, known: Examined, outputs: Sequence[Path], tolerance: float) -> Iterator[Reconstructed]:
        scans, changed = self._scans(known.path), DataError("its content changed while it was used.", known.path)
        for output in outputs:
            scan = next(scans, None)
            if scan is None:
                raise changed
            yield self._one(known, scan, output, tolerance)
        if next(scans, None) is not None:
            raise changed

    def _one(self, known: Examined, scan: _Scan, output: Path, tolerance: float) -> Reconstructed:
        b, data_term = scan.sinogram, self._data_term(scan.sinogram, scan.weights)
        problem = self.model.problem(operator=self.operator, data_term=data_term)
        started = time.perf_counter()
        solution = solve(problem, b, tolerance)
        seconds = time.perf_counter() - started
        x, (bound, error) = solution.x[0], stored_error(solution, problem, data_term.at(b), scan.rounding)
        files = [write_array(output, x, bound, self.options.model_value), write_png(output, x, 8, bound)]
        return Reconstructed.of(known, files, solution, error, seconds, tolerance)

    def _data_term(self, b: Tensor, weights: Tensor | None) -> DataTerm:
        """The model's data term times the data weight and the statistical weights of a measurement; known counts
        replace those that the model concludes from line integrals."""
        own, factor = self.model.data_term, self.options.data_weight
        if isinstance(own, TransmissionLeastSquares):
            found = own.at(b).weights_for(b)[0] if weights is None else weights
            return WeightedLeastSquares(found * factor)
        if weights is None and factor == 1.0:
            return own
        return own.weighted(factor if weights is None else factor * weights)


def _field(text: str, ignored: Mask | None) -> Tensor | float:
    """A number, or the values in a file."""
    try:
        return float(text)
    except ValueError:
        return read_array(text, ignored=ignored)


def _field_of(field: Tensor | float, index: int, count: int) -> Tensor | float:
    """That of one sinogram, where each has its own."""
    if isinstance(field, Tensor) and field.dim() > 2 and len(field) == count:
        return field[index]
    return field


def _without(geometry: Geometry, text: str) -> Geometry:
    """The geometry with more dead detectors: numbers and ranges, separated by commas."""
    option = f"--dead-detectors {text!r}"
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and len(first) <= _DIGITS):
            raise ConfigError(f"{option}: expected numbers and ranges, such as 40,101-103, counted from 0.")
        if len(last) > _DIGITS or not int(first) <= int(last) < geometry.detectors:
            raise ConfigError(
                f"{option}: {part.strip()} is out of range, the {geometry.detectors} detectors are counted from 0 to "
                f"{geometry.detectors - 1}."
            )
        found += range(int(first), int(last) + 1)
    if len(set(found)) < len(found):
        raise ConfigError(f"{option}: a detector is named twice.")
    return dataclasses.replace(geometry, dead_detectors=tuple({*geometry.dead_detectors, *found}))
