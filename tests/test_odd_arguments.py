"""Constructors, data sets, readers, training: an odd argument works or is refused with a sentence."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.odd_arguments import ODD_NUMBERS, SHAPE, B, X, ends_well, odd_tensors
from torch.utils.data import IterableDataset

import learnreg as lr
from learnreg.datasets import (
    BSDS500,
    DenoisingPatches,
    ImageFolder,
    PhotonNoise,
    RelativeNoise,
    TomographyPairs,
    add_noise,
    ellipse_phantom,
    ellipse_phantoms,
    estimate_noise,
    find_series,
    line_integrals,
    list_images,
    load_ct_images,
    load_training_images,
    read_array,
    read_dicom,
    read_dicom_series,
    read_hdf5_array,
    read_image,
    read_sinogram,
    resize_slice,
    statistical_weights,
    window_hounsfield,
)
from learnreg.operators import (
    FanBeam2D,
    Identity,
    ParallelBeam2D,
    from_scipy,
)
from learnreg.operators.tomography.filtered_back_projection import filtered_back_projection
from learnreg.operators.tomography.geometry import FanGeometry
from learnreg.regularizers import (
    FieldsOfExperts,
    GeneralisedTikhonov,
    InputConvexNetwork,
    LearnedTotalGeneralizedVariation,
    LearnedTotalVariation,
    MultivariateExperts,
    Reweighted,
    RidgeRegularizer,
    Scaled,
    TotalVariation,
)

A, R = Identity(SHAPE), TotalVariation(0.1, 1e-2).double()


class Endless(IterableDataset[Any]):
    """A stream of one item."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __iter__(self) -> Iterator[Any]:
        return iter([self.item])


def train(dataset: Any, **given: Any) -> lr.TrainResult | None:
    """One update; nothing where the number asked for would take longer, or a function be called."""
    (value,) = given.values() or (None,)
    long = isinstance(value, np.number) or (isinstance(value, int) and value > 1) or (given and value is None)
    if long or callable(value):
        return None
    own = lr.LowerLevelProblem(A, TotalVariation(0.1, 1e-2).double())
    return lr.train(own, dataset, **{"updates": 1, "tune": False, **given})


def item_of(index: Any) -> object:
    try:
        return DenoisingPatches([B[0]], 0.1, 4)[index]
    except IndexError:  # as sequences end
        return None


SCAN: dict[str, Any] = {"image_size": 4, "angles": 3, "detectors": 5}
CHOICES = ("kernel", "symmetry", "backend")
DISTANCES = ("source_to_center", "source_to_detector")
FAN: dict[str, Any] = {
    **SCAN, "angles": (0.0, 1.0), "pixel_size": 1.0, "detector_pitch": 1.0, "detector_offset": 0.0,
    "image_center": (0.0, 0.0), "dead_detectors": (), "source_to_center": 9.0, "source_to_detector": 18.0,
    "detector_shape": "flat",
}  # fmt: skip
FAMILIES = (
    FieldsOfExperts,
    GeneralisedTikhonov,
    InputConvexNetwork,
    LearnedTotalGeneralizedVariation,
    LearnedTotalVariation,
    MultivariateExperts,
    RidgeRegularizer,
)
TRAIN = ("batch_size", "tolerance", "optimizer", "step_size", "samples", "seed", "resume", "check_operator", "tune")
TRAIN = (*TRAIN, "validate", "on_update", "updates", "minutes", "out")
READERS = (read_image, read_array, read_hdf5_array, read_sinogram, read_dicom, read_dicom_series, find_series)
READERS = (*READERS, list_images, ImageFolder, BSDS500, load_training_images, load_ct_images)


def options(kind: type) -> list[str]:
    """The arguments of a regularizer's constructor."""
    return list(inspect.signature(kind).parameters)


TAKES_TENSORS: dict[str, Callable[[Any], object]] = {
    "train(dataset)": lambda v: train(v),
    "items": lambda v: train([v, v]),
    "b of an item": lambda v: train([(v, X[0])]),
    "x_true of an item": lambda v: train([(B[0], v)]),
    "stack of b": lambda v: train((v, X)),
    "stack of x_true": lambda v: train((B, v)),
    "iterable": lambda v: train(Endless(v)),
    "projector": lambda v: ParallelBeam2D(4, 3)(v),
    "back-projection": lambda v: filtered_back_projection(ParallelBeam2D(4, 3), v),
    "save_model": lambda v: lr.save_model(os.devnull, v),
    "add_noise": lambda v: add_noise(v, 0.1, 0),
    "estimate_noise": estimate_noise,
    "push": lambda v: lr.push(v, f"{os.devnull}/folder"),
    "patches": lambda v: DenoisingPatches(v, 0.1, 4),
    "patch of": lambda v: DenoisingPatches([v], 0.1, 4)[0],
    "pairs(operator)": lambda v: TomographyPairs(v, X),
    "pairs(images)": lambda v: TomographyPairs(A, v),
    "pairs of": lambda v: TomographyPairs(A, [v]),
    "counts": lambda v: line_integrals(v, 2.0),
    "flat": lambda v: line_integrals(B.abs(), v),
    "weights of counts": lambda v: statistical_weights(v),
    "window_hounsfield": lambda v: window_hounsfield(v),
    "resize_slice": lambda v: resize_slice(v, 2),
}

TAKES_NUMBERS: dict[str, Callable[[Any], object]] = {
    **{f"ParallelBeam2D({k})": lambda v, k=k: ParallelBeam2D(**{**SCAN, k: v}) for k in (*SCAN, *CHOICES)},
    **{f"FanBeam2D({k})": lambda v, k=k: FanBeam2D(**{**SCAN, k: v}) for k in (*SCAN, *CHOICES, *DISTANCES)},
    **{f"FanGeometry({k})": lambda v, k=k: FanGeometry(**{**FAN, k: v}) for k in FAN},
    "covering_detectors": lambda v: FanGeometry(**FAN).covering_detectors(v),
    "scaled": lambda v: FanGeometry(**FAN).scaled(v),
    "from_scipy(domain_shape)": lambda v: from_scipy(np.eye(16), v, SHAPE),
    "from_scipy(range_shape)": lambda v: from_scipy(np.eye(16), SHAPE, v),
    **{f"{kind.__name__}({k})": lambda v, kind=kind, k=k: kind(**{k: v}) for kind in FAMILIES for k in options(kind)},
    "Scaled(factor)": lambda v: Scaled(R, v),
    **{f"Reweighted({k})": lambda v, k=k: Reweighted(R, **{k: v}) for k in options(Reweighted)[1:]},
    "norm bound": lambda v: from_scipy(np.eye(16), SHAPE, SHAPE, norm_bound=v),
    "loss of a curve": lambda v: lr.plot.learning_curve([{"step": 1, "loss": 1.0}, {"step": 2, "loss": v}]),
    "most channels": lambda v: lr.plot.weights(Reweighted(R), B[0], v),
    **{f"train({k})": lambda v, k=k: train([(B[0], X[0])], **{k: v}) for k in TRAIN},
    "seed of noise": lambda v: add_noise(B, 0.1, v),
    "count of patches": lambda v: DenoisingPatches([B[0]], 0.1, 4, v),
    "number of an item": lambda v: item_of(v),
    "photons of noise": lambda v: PhotonNoise(v),
    "fraction": lambda v: RelativeNoise(v),
    "size of phantoms": lambda v: ellipse_phantom(0, v),
    "number of phantoms": lambda v: ellipse_phantoms(v, 16),
    "floor": lambda v: line_integrals(B.abs(), 2.0, floor=v),
    "electronic": lambda v: statistical_weights(B.abs() + 1.0, electronic=v),
    "window": lambda v: window_hounsfield(B, v),
    "spacing": lambda v: resize_slice(B[0], 2, v),
    **{f"path of {read.__name__}": lambda v, read=read: read(v) for read in READERS},
    "path of save_model": lambda v: lr.save_model(os.devnull if isinstance(v, str) else v, R),
    "path of push": lambda v: lr.push(R, v),
    "card of push": lambda v: lr.push(R, "folder", card=v),
    "path of pull": lambda v: lr.pull(v),
    "check_operator(seed)": lambda v: lr.testing.check_operator(A, seed=v),
    "check_regularizer(image_shape)": lambda v: lr.testing.check_regularizer(R, image_shape=v),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TAKES_TENSORS)
def test_odd_tensors(name: str) -> None:
    for _, value in odd_tensors():
        ends_well(TAKES_TENSORS[name], value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TAKES_NUMBERS)
def test_odd_numbers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # texts are names of folders
    for value in ODD_NUMBERS.values():
        ends_well(TAKES_NUMBERS[name], value)


SCALES = ("weight", "smoothing", "ratio", "delta", "noise_level", "nonconvexity")


@pytest.mark.parametrize("value", [1e308, 1e200, 1e39, 1e-46, 1e-308, 5e-324])
@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k in (*FAMILIES, TotalVariation) for n in SCALES if n in options(k)]
)
def test_numbers_without_room_for_products_are_refused(kind: type, name: str, value: float) -> None:
    """They would end in NaN, or in errors of torch, far from where they were given."""
    lifted = {"form": "lifted"} if (kind, name) == (InputConvexNetwork, "delta") else {}
    with pytest.raises(lr.ConfigError, match=name):
        kind(**{name: (value, 1.0) if lifted else value}, **lifted)
