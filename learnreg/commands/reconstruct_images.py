"""Reconstructing files: images or arrays in, images with error bounds out."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from learnreg.datasets import read_image
from learnreg.datasets.files.checks import check_file
from learnreg.datasets.files.sinograms import map_npy
from learnreg.errors import ConfigError, DataError
from learnreg.models.extras import require
from learnreg.models.model import Model
from learnreg.models.tensor_files import write_atomically
from learnreg.result import BoundKind
from learnreg.solvers.solve import check_tolerance

__all__ = ["Reconstructed", "output_paths", "png_bytes", "read_measurement", "reconstruct_files", "write_array"]

_EXACT_SUFFIXES = frozenset({".npy", ".tif", ".tiff"})  # whose values a PNG of 8 bits would round


@dataclass(frozen=True)
class Reconstructed:
    """One reconstruction: error_bound is the root-mean-square error, in the units of the .npy output (of x, for
    denoising); bound_kind "rigorous" (where ``certified``), "estimate" or "none"; status is the name of a Status."""

    input: str
    output: str
    error_bound: float
    bound_kind: BoundKind
    certified: bool
    status: str
    seconds: float


def reconstruct_files(
    model: Model, inputs: Sequence[Path], out: Path, tolerance: float = 1e-4
) -> Iterator[Reconstructed]:
    """Reconstruct one file after the other into ``out``/<name>.png; for .npy and TIFF also <name>.npy in float32.

    All inputs are read before the first is reconstructed, so that a bad one stops the command at once.

    Raises
    ------
    ConfigError: two inputs with the same name, or an output that would replace an input. DataError: a bad input, or
        an output that cannot be written.
    """
    check_tolerance(tolerance)
    outputs = [output for (output,) in output_paths(inputs, [1] * len(inputs), out)]
    for path in inputs:
        read_measurement(path)
    return (_reconstruct(model, path, output, tolerance) for path, output in zip(inputs, outputs, strict=True))


def read_measurement(path: Path) -> Tensor:
    """An image file, see ``learnreg.datasets.read_image``, or a .npy array (height, width) or (1, height, width) of
    floating-point numbers, in which values outside [0, 1] are allowed. Shape (1, height, width), float32."""
    if path.suffix.lower() != ".npy":
        return read_image(path)
    array = map_npy(check_file(path))
    if array.dtype.kind != "f":
        raise DataError(f"its type is {array.dtype}.", path, "Save an array of floating-point numbers, white being 1.")
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[0] != 1 or array.size == 0:
        raise DataError(f"its shape is {array.shape}, expected (height, width) or (1, height, width).", path)
    with np.errstate(over="ignore"):  # checked below
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        count = int(values.size - np.isfinite(values).sum())
        raise DataError(f"{count} values are NaN or infinite.", path, "Replace them before using the file.")
    return torch.from_numpy(np.ascontiguousarray(values))


def png_bytes(x: Tensor) -> bytes:
    """An image (1, height, width) as PNG: 8 bits, values clipped to [0, 1]."""
    image = require("PIL.Image", "writing PNG files", "pillow")
    pixels = (x.detach()[0].double().clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()
    buffer = io.BytesIO()
    image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_array(output: Path, x: Tensor) -> None:
    """An image (1, height, width) as a .npy array (height, width) in float32, beside a .png of that name."""
    buffer = io.BytesIO()
    np.save(buffer, x[0].detach().to("cpu", torch.float32).numpy())
    write_atomically(output.with_suffix(".npy"), buffer.getvalue(), DataError)


def output_paths(inputs: Sequence[Path], counts: Sequence[int], out: Path) -> list[list[Path]]:
    """Where the ``counts[i]`` reconstructions from input i go: ``out``/<name>.png, or <name>_000.png and so on.

    Raises
    ------
    ConfigError: ``out`` is a file; two outputs of one name; one that would replace an input.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: expected a folder, this is a file.")
    sources = {path.resolve() for path in inputs}
    owners: dict[Path, Path] = {}
    outputs = []
    for path, count in zip(inputs, counts, strict=True):
        names = [path.stem] if count == 1 else [f"{path.stem}_{i:03d}" for i in range(count)]
        outputs.append([out / f"{name}.png" for name in names])
        for output in outputs[-1]:
            if output in owners:
                raise ConfigError(f"{owners[output]} and {path} would both be written to {output}; rename one of them.")
            if output.resolve() in sources or output.with_suffix(".npy").resolve() in sources:
                raise ConfigError(f"{path}: the output would replace an input; choose another --out.")
            owners[output] = path
    return outputs


def _reconstruct(model: Model, path: Path, output: Path, tolerance: float) -> Reconstructed:
    b = read_measurement(path)[None]
    started = time.perf_counter()
    solution = model.solve(b, tolerance)
    seconds = time.perf_counter() - started
    write_atomically(output, png_bytes(solution.x[0]), DataError)
    if path.suffix.lower() in _EXACT_SUFFIXES:
        write_array(output, solution.x[0])
    return Reconstructed(
        input=str(path),
        output=str(output),
        error_bound=float(solution.error_bound[0]),
        bound_kind=solution.bound_kind,
        certified=solution.certified,
        status=solution.status.name,
        seconds=seconds,
    )
