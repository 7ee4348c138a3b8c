"""What ``learnreg reconstruct`` writes, and how far each file is from the model's minimiser.

A reconstruction x within e of it (root mean square), stored as a file whose pixels f say x rounded and cut off, is
within e + rms(f - x) of it by the triangle inequality: a bound where e is one.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.commands.terminal import check_folder
from learnreg.errors import ConfigError, DataError
from learnreg.lower_level.data_terms import DataTerm
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.models.extras import require
from learnreg.models.tensor_files import write_atomically
from learnreg.result import BoundKind, KnownError, Solution

__all__ = [
    "Examined",
    "Reconstructed",
    "Written",
    "each_reconstructed",
    "output_paths",
    "png_bytes",
    "stored_error",
    "write_array",
    "write_png",
]

_SUMS = 1.0 + 1e-9
_SINGLE = 2.0**-24
"""For the rounding of the sums here, and of readers that scale pixels to [0, 1] in single precision."""


@dataclass(frozen=True)
class Examined:
    """An input before the work: what was done to it, what speaks against it, how many reconstructions it gives, and the
    noise level that it is denoised at, if any."""

    path: Path
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    count: int = 1
    sigma: float | None = None


@dataclass(frozen=True)
class Written:
    """A file and the error bound of its values (root mean square): for a .npy file in its units, for a .png file in
    units of its white."""

    path: str
    error_bound: float


@dataclass(frozen=True)
class Reconstructed:
    """One reconstruction: ``output`` is the most accurate of the ``files``, error_bound its root-mean-square error in
    its units, which contains how it was rounded and cut off; bound_kind "rigorous" (where ``certified``), "estimate" or
    "none"; certified_scope "local" where the bound is about a local minimiser, and "given weights" where about the last
    problem of a chain, given its weights, which leaves it not ``certified``;
    status is the name of a Status; tolerance what was asked of the reconstruction before it was stored; sigma: the
    noise level that a denoiser worked at, None where it is not known; notes and warnings: what a user has to know of
    the input."""

    input: str
    output: str
    error_bound: float
    bound_kind: BoundKind
    certified: bool
    certified_scope: str
    status: str
    seconds: float
    tolerance: float
    sigma: float | None
    files: tuple[Written, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @classmethod
    def of(
        cls,
        known: Examined,
        files: Sequence[Written],
        solution: Solution,
        error: KnownError,
        seconds: float,
        tolerance: float,
    ) -> Reconstructed:
        """What was written of a solution for an input, the most accurate of the files first."""
        return cls(
            input=str(known.path),
            output=files[0].path,
            error_bound=files[0].error_bound,
            bound_kind=error.kind,
            certified=solution.certified and (error.kind, error.scope) == ("rigorous", solution.certified_scope),
            certified_scope=error.scope,
            status=solution.status.name,
            seconds=seconds,
            tolerance=tolerance,
            sigma=known.sigma,
            files=tuple(files),
            notes=known.notes,
            warnings=known.warnings,
        )


def stored_error(
    solution: Solution, problem: LowerLevelProblem, data_term: DataTerm, rounding: float
) -> tuple[float, KnownError]:
    """What is known of the error of x for measurements that were rounded, by ``rounding`` (root mean square): a number
    for all channels, and its kind. How far an exact chain moves with its data is not known, and neither is it of a
    local minimiser: then it is about the last problem, given its weights, or an *estimate*."""
    error = solution.error_given_weights if rounding else solution.known_error
    bound = float(error.bound.square().mean().sqrt())
    moved = _sensitivity(problem, data_term)
    if rounding and not moved and error.kind == "rigorous":
        error = error._replace(kind="estimate")
    return bound + moved * rounding, error


def _sensitivity(problem: LowerLevelProblem, data_term: DataTerm) -> float:
    """‖x^(b) - x^(b')‖ is at most this times ‖b - b'‖ (root mean squares): mu ‖dx‖² <= <A^T ∂D'/∂b db, dx> since the
    energy is mu-strongly convex, also over a box; 0 where no modulus is known, and no bound exists. *Rigorous bound.*

    data_term: at the data, with the weights that it has there."""
    mu = problem.strong_convexity
    if mu <= 0:
        return 0.0
    pixels, numbers = math.prod(problem.operator.domain_shape), math.prod(problem.operator.range_shape)
    return data_term.sensitivity() * problem.operator.norm_bound() / mu * math.sqrt(numbers / pixels)


def png_bytes(x: Tensor, bits: int = 8) -> bytes:
    """An image (1, height, width) as grey PNG of 8 or 16 bits, or (3, height, width) as RGB of 8, values clipped to
    [0, 1]."""
    image = require("PIL.Image", "writing PNG files", "pillow")
    buffer = io.BytesIO()
    image.fromarray(_pixels(x, bits)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_png(path: Path, x: Tensor, bits: int, error_bound: float) -> Written:
    """x as PNG, whose white is 1."""
    write_atomically(path, png_bytes(x, bits), DataError)
    read = torch.from_numpy(_pixels(x, bits).astype(np.float64)) / (2**bits - 1)
    return Written(str(path), _stored_bound(error_bound, read, _as_stored(x)) + _SINGLE)


def write_array(output: Path, x: Tensor, error_bound: float, unit: float = 1.0) -> Written:
    """unit · x, (1, height, width), as a .npy array (height, width) in float32, or (3, height, width) as it is, beside
    a .png of that name; ``error_bound`` is that of x."""
    path, buffer = output.with_suffix(".npy"), io.BytesIO()
    exact = unit * (x[0] if len(x) == 1 else x).detach().cpu().double()
    stored = exact.float()
    np.save(buffer, stored.numpy())
    write_atomically(path, buffer.getvalue(), DataError)
    return Written(str(path), _stored_bound(unit * error_bound, stored.double(), exact))


def _pixels(x: Tensor, bits: int) -> np.ndarray[Any, Any]:
    scaled = (_as_stored(x.detach()).double().clamp(0, 1) * (2**bits - 1)).round()
    pixels: np.ndarray[Any, Any] = scaled.cpu().numpy().astype(np.uint8 if bits == 8 else np.uint16)
    return pixels


def _as_stored(x: Tensor) -> Tensor:
    """(height, width), or with colours last."""
    return x[0] if len(x) == 1 else x.movedim(0, -1)


def _stored_bound(error_bound: float, stored: Tensor, x: Tensor) -> float:
    moved = stored - x.detach().to(stored)
    if not bool(moved.any()):
        return error_bound
    return (error_bound + math.sqrt(float(moved.square().mean()))) * _SUMS


def each_reconstructed(
    paths: Sequence[Path],
    out: Path,
    examine: Callable[[Path], Examined],
    reconstruct: Callable[[Examined, Sequence[Path]], Iterator[Reconstructed]],
) -> tuple[list[Examined], Iterator[Reconstructed]]:
    """All files examined, so that a bad one stops a command at once; and one reconstruction after the other, written to
    the ``output_paths``."""
    examined = [examine(path) for path in paths]
    outputs = output_paths(paths, [known.count for known in examined], out)
    return examined, (row for pair in zip(examined, outputs, strict=True) for row in reconstruct(*pair))


def output_paths(inputs: Sequence[Path], counts: Sequence[int], out: Path) -> list[list[Path]]:
    """Where the ``counts[i]`` reconstructions from input i go: ``out``/<name>.png, or <name>_000.png and so on.

    Raises
    ------
    ConfigError: ``out`` is a file; two outputs of one name; one that would replace an input.
    """
    check_folder(out)
    sources = {os.path.realpath(path) for path in inputs}
    owners: dict[Path, Path] = {}
    outputs = []
    for path, count in zip(inputs, counts, strict=True):
        names = [path.stem] if count == 1 else [f"{path.stem}_{i:03d}" for i in range(count)]
        outputs.append([out / f"{name}.png" for name in names])
        for output in outputs[-1]:
            if output in owners:
                raise ConfigError(f"{owners[output]} and {path} would both be written to {output}; rename one of them.")
            if not sources.isdisjoint(map(os.path.realpath, (output, output.with_suffix(".npy")))):
                raise ConfigError(f"{path}: the output would replace an input; choose another --out.")
            owners[output] = path
    return outputs
