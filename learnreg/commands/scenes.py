"""Clean images with simulated measurements: what reconstructions are compared and evaluated on."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from learnreg.datasets import PhotonNoise, RelativeNoise, add_noise
from learnreg.operators import FanBeam2D, ParallelBeam2D, filtered_back_projection
from learnreg.report.comparison import Scene

__all__ = ["Projector", "measured_scene", "measured_scenes", "noise_model", "noisy_scenes", "warn_of_overlap"]

Projector = ParallelBeam2D | FanBeam2D
Named = Iterable[tuple[str, Tensor]]


def warn_of_overlap(training: Mapping[str, Tensor], held_out: Mapping[str, Tensor]) -> None:
    """Warn where a held-out image also is a training image, pixel by pixel."""
    known = {_content(image): name for name, image in training.items()}
    same = [f"{name} (as {known[key]})" for name, image in held_out.items() if (key := _content(image)) in known]
    if same:
        warnings.warn(
            f"held-out images are training images, too: {', '.join(same)}. What is measured on them says nothing about "
            "other images.",
            stacklevel=2,
        )


def _content(image: Tensor) -> bytes:
    values = image.detach().cpu().contiguous()
    return hashlib.sha256(repr(tuple(values.shape)).encode() + values.numpy().tobytes()).digest()


def noise_model(noise: float, photons: float, attenuation: float) -> RelativeNoise | PhotonNoise:
    """Poisson noise of so many photons, or for 0 photons Gaussian noise relative to the mean of the sinogram."""
    return PhotonNoise(photons, attenuation) if photons > 0 else RelativeNoise(noise)


def noisy_scenes(images: Named, sigma: float, seed: int = 0) -> Iterator[Scene]:
    """Images (1, height, width) by name, with Gaussian noise; that of image i has the seed ``seed + i``."""
    for i, (name, clean) in enumerate(images):
        noisy = add_noise(clean, sigma, seed + i)
        yield Scene(name, clean, noisy, noisy)


def measured_scenes(
    operator: Projector, images: Named, noise: RelativeNoise | PhotonNoise, seed: int = 0
) -> Iterator[Scene]:
    """Images of the projector's domain by name, with noisy sinograms; that of image i has the seed ``seed + i``."""
    for i, (name, clean) in enumerate(images):
        with torch.no_grad():
            b = noise.apply(operator(clean[None])[0], torch.Generator().manual_seed(seed + i))
        yield measured_scene(operator, name, clean, b)


def measured_scene(operator: Projector, name: str, clean: Tensor, b: Tensor) -> Scene:
    """The input image is the filtered back-projection, with the ramp or the Hann filter, whichever is closer to the
    clean image."""
    candidates = [filtered_back_projection(operator, b[None], kind)[0] for kind in ("ramp", "hann")]
    errors = [float((x - clean).double().square().mean()) for x in candidates]
    return Scene(name, clean, b, candidates[errors.index(min(errors))])
