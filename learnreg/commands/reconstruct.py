"""Which of the reconstructing classes a model's inputs are for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from learnreg.commands.image_outputs import Examined, Reconstructed
from learnreg.commands.reconstruct_images import Denoiser
from learnreg.commands.reconstruct_kspace import KSpaceReconstructor
from learnreg.commands.reconstruct_options import KSpaceOptions, ScanOptions
from learnreg.commands.reconstruct_scans import Reconstructor
from learnreg.errors import ConfigError
from learnreg.models.model import Model

__all__ = ["reconstructions"]


def reconstructions(
    model: Model,
    inputs: Sequence[Path],
    out: Path,
    tolerance: float | None,
    sigma: str | None,
    scan: ScanOptions,
    kspace: KSpaceOptions,
) -> tuple[list[Examined], Iterator[Reconstructed], list[str]]:
    """The examined files, one reconstruction after the other, and what a user has to know of the outputs.

    Raises
    ------
    ConfigError: options for another kind of model; what each class names, as DataError and ShapeError.
    """
    images = model.denoises and scan.geometry is None
    if kspace.given and not model.for_mri:
        raise ConfigError(f"{kspace.given[0]}: the option is for MRI, this model is not.")
    if scan.given and (images or model.for_mri):
        what = "is for MRI" if model.for_mri else "denoises images"
        raise ConfigError(f"{', '.join(scan.given)}: this model {what}; the option is for CT.")
    if images:
        return *Denoiser(model, tolerance, sigma).run(inputs, out), []
    if sigma is not None:
        advice = "" if model.for_mri else "; for scans there is --data-weight"
        raise ConfigError(f"--sigma {sigma}: it is for denoising images{advice}.")
    if model.for_mri:
        coils = KSpaceReconstructor(model, kspace)
        return *coils.run(inputs, out, tolerance), list(coils.notes)
    reconstructor = Reconstructor.of(model, scan)
    return *reconstructor.run(inputs, out, tolerance), [*reconstructor.notes, reconstructor.units]
