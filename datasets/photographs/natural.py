"""Natural photographs that are installed with scikit-image: nothing is downloaded."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from learnreg.datasets.files.images import read_image
from learnreg.errors import DataError
from learnreg.linear.arguments import check_one_of

__all__ = ["NATURAL_SPLITS", "natural_images", "natural_split"]

# SHA-256 of the files, the same in scikit-image 0.24 to 0.26. Left out: synthetic images, logos, silhouettes, pictures
# of stars and cells (hardly any edges), and the retina (a third of all pixels, most of them flat).
_SHA256 = {
    "train": {
        "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
        "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
        "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
        "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
        "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
        "moon.png": "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577",
        "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
        "motorcycle_right.png": "5fc913ae870e42a4b662314bc904d1786bcad8e2f0b9b67dba5a229406357797",
        "page.png": "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3",
        "text.png": "bd84aa3a6e3c9887850d45d606c96b2e59433fbef50338570b63c319e668e6d1",
    },
    "test": {
        "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    },
}

#: Names of the images in each split; the split is by image, and the two views of the motorcycle are in the same one.
NATURAL_SPLITS: dict[str, tuple[str, ...]] = {
    split: tuple(Path(file).stem for file in files) for split, files in _SHA256.items()
}


_COLOURED = frozenset({"astronaut", "chelsea", "ihc", "motorcycle_left", "motorcycle_right", "coffee", "rocket"})


def natural_images(split: str = "train", colour: bool = False) -> dict[str, Tensor]:
    """Photographs (1, height, width) in [0, 1] by name: "train" (12 images) or the held-out "test" (3 images); with
    ``colour`` (3, height, width), those that have colours: 5 images, and 2 held out.

    Parameters
    ----------
    split: "train" or "test".

    Raises
    ------
    ConfigError: another split.
    DataError: scikit-image is not installed, or a file is not the one that was pinned.
    """
    check_one_of(split, tuple(_SHA256), "split")
    folder = _data_folder()
    chosen = {Path(file).stem: (folder / file, digest) for file, digest in _SHA256[split].items()}
    return {name: _read_pinned(*entry, colour) for name, entry in chosen.items() if not colour or name in _COLOURED}


def natural_split(
    size: int = 128, count: int | None = None, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Both splits of ``natural_images``, the first ``count`` of the training images; their sizes are their own."""
    return dict(list(natural_images("train").items())[:count]), natural_images("test")


def _data_folder() -> Path:
    # scikit-image is located but not imported: its own loaders may start a download.
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "the natural images are files of the package scikit-image.",
            hint="Install it with: pip install 'learnreg[images]'",
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _read_pinned(path: Path, digest: str, colour: bool) -> Tensor:
    if not path.is_file():
        raise DataError(f"missing from scikit-image {_scikit_image_version()}.", path, _hint())
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise DataError(f"differs from the pinned image in scikit-image {_scikit_image_version()}.", path, _hint())
    return read_image(path, colour=colour)


def _scikit_image_version() -> str:
    try:
        return version("scikit-image")
    except PackageNotFoundError:
        return "(unknown version)"


def _hint() -> str:
    return "Reinstall a version that has it: pip install --force-reinstall 'scikit-image>=0.24,<0.27'"
