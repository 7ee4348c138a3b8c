"""Images and data sets to learn from: photographs, folders, BSDS500, noisy patches; phantoms, measurements and files of
computed tomography."""

from learnreg.datasets.bsds import BSDS500, load_training_images
from learnreg.datasets.ct_images import load_ct_images
from learnreg.datasets.dicom import DicomSlice, read_dicom
from learnreg.datasets.dicom_series import CT_WINDOW, DicomSeries, find_series, read_dicom_series, window_hounsfield
from learnreg.datasets.folder import ImageFolder, list_images
from learnreg.datasets.hdf5 import read_hdf5_array
from learnreg.datasets.images import read_image
from learnreg.datasets.lodopab import LoDoPaB
from learnreg.datasets.natural import natural_images
from learnreg.datasets.noise import PhotonNoise, RelativeNoise
from learnreg.datasets.patches import DenoisingPatches, add_noise, parse_sigma
from learnreg.datasets.phantoms import ellipse_phantom, ellipse_phantoms
from learnreg.datasets.sinograms import read_array, read_sinogram
from learnreg.datasets.slices import resize_slice
from learnreg.datasets.tomography import TomographyPairs
from learnreg.datasets.transmission import LineIntegrals, line_integrals, statistical_weights

__all__ = [
    "BSDS500",
    "CT_WINDOW",
    "DenoisingPatches",
    "DicomSeries",
    "DicomSlice",
    "ImageFolder",
    "LineIntegrals",
    "LoDoPaB",
    "PhotonNoise",
    "RelativeNoise",
    "TomographyPairs",
    "add_noise",
    "ellipse_phantom",
    "ellipse_phantoms",
    "find_series",
    "line_integrals",
    "list_images",
    "load_ct_images",
    "load_training_images",
    "natural_images",
    "parse_sigma",
    "read_array",
    "read_dicom",
    "read_dicom_series",
    "read_hdf5_array",
    "read_image",
    "read_sinogram",
    "resize_slice",
    "statistical_weights",
    "window_hounsfield",
]
