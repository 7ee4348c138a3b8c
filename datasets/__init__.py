"""Images and data sets to learn from: photographs, folders, BSDS500, noisy patches; phantoms, measurements and files of
computed tomography and of magnetic resonance imaging; the table of those that have a name."""

from typing import Protocol

from torch import Tensor

from learnreg.datasets.files.dicom import DicomSlice, read_dicom
from learnreg.datasets.files.dicom_series import (
    CT_WINDOW,
    DicomSeries,
    find_series,
    read_dicom_series,
    window_hounsfield,
)
from learnreg.datasets.files.folder import ImageFolder, list_images
from learnreg.datasets.files.hdf5 import read_hdf5_array
from learnreg.datasets.files.images import read_image
from learnreg.datasets.files.sinograms import SinogramStack, read_array, read_sinogram
from learnreg.datasets.measured_pairs import MeasuredPairs
from learnreg.datasets.mri.coil_maps import estimate_coil_maps, simulate_coil_maps
from learnreg.datasets.mri.kspace_files import KSpace, read_kspace
from learnreg.datasets.mri.masks import cartesian_mask
from learnreg.datasets.mri.mri_images import combined_images, load_mri_images
from learnreg.datasets.mri.pairs import KSpacePairs
from learnreg.datasets.mri.phantoms import with_smooth_phase
from learnreg.datasets.noise import GaussianNoise
from learnreg.datasets.photographs.bsds import BSDS500, load_training_images
from learnreg.datasets.photographs.natural import natural_images, natural_split
from learnreg.datasets.photographs.noise_estimate import estimate_noise
from learnreg.datasets.photographs.patches import DenoisingPatches, add_noise, parse_sigma, parse_sigmas
from learnreg.datasets.tomography.ct_images import ellipse_split, load_ct_images
from learnreg.datasets.tomography.lodopab import LoDoPaB
from learnreg.datasets.tomography.noise import PhotonNoise, RelativeNoise
from learnreg.datasets.tomography.pairs import TomographyPairs
from learnreg.datasets.tomography.phantoms import ellipse_phantom, ellipse_phantoms
from learnreg.datasets.tomography.slices import resize_slice
from learnreg.datasets.tomography.transmission import LineIntegrals, line_integrals, statistical_weights

__all__ = [
    "BSDS500",
    "CT_WINDOW",
    "DATASETS",
    "DenoisingPatches",
    "DicomSeries",
    "DicomSlice",
    "GaussianNoise",
    "ImageFolder",
    "KSpace",
    "KSpacePairs",
    "LineIntegrals",
    "LoDoPaB",
    "MeasuredPairs",
    "PhotonNoise",
    "RelativeNoise",
    "SinogramStack",
    "TomographyPairs",
    "add_noise",
    "cartesian_mask",
    "combined_images",
    "ellipse_phantom",
    "ellipse_phantoms",
    "estimate_coil_maps",
    "estimate_noise",
    "find_series",
    "line_integrals",
    "list_images",
    "load_ct_images",
    "load_mri_images",
    "load_training_images",
    "natural_images",
    "parse_sigma",
    "parse_sigmas",
    "read_array",
    "read_dicom",
    "read_dicom_series",
    "read_hdf5_array",
    "read_image",
    "read_kspace",
    "read_sinogram",
    "resize_slice",
    "simulate_coil_maps",
    "statistical_weights",
    "window_hounsfield",
    "with_smooth_phase",
]


class NamedImages(Protocol):
    """Training and held-out images, each (1, height, width) in [0, 1], by name; they have none in common.

    size: side of the images, count: at most as many training images, seed: what is drawn; a data set takes of these
    what it can.
    """

    def __call__(
        self, size: int = 128, count: int | None = None, seed: int = 0
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]: ...


DATASETS: dict[str, NamedImages] = {"natural": natural_split, "ellipses": ellipse_split}
"""By the name that ``--data`` takes; everything else is a folder."""
