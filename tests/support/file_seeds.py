"""Whole files of every kind that loaders read, small ones: folders of bytes by the names of their files."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.mutations import mutated

__all__ = [
    "DATA",
    "GEOMETRIES",
    "Files",
    "array",
    "bmps",
    "checkpoints",
    "complex_array",
    "dicom_series",
    "dicom_slices",
    "fastmri_files",
    "hdf5_arrays",
    "ismrmrd_files",
    "jpegs",
    "lodopab_pairs",
    "models",
    "npys",
    "pngs",
    "published_ridges",
    "run_files",
    "tiff_stacks",
    "tiffs",
]

DATA = Path(__file__).parents[1] / "data"
Files = dict[str, bytes]


def array(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random(shape)


def _bytes(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _pictures(format_: str, modes: dict[str, list[dict[str, Any]]]) -> Iterator[bytes]:
    from PIL import Image

    rgba = Image.fromarray((255 * array(11, 13, 4)).astype(np.uint8), "RGBA" if _old_pillow() else None)
    for mode, choices in modes.items():
        picture = rgba.convert("L").convert("I;16") if mode == "I;16" else rgba.convert(mode)
        for options in choices:
            yield _bytes(lambda file, p=picture, o=options: p.save(file, format_, **o))  # type: ignore[misc]


def _old_pillow() -> bool:
    import PIL

    return int(PIL.__version__.split(".")[0]) < 11


def pngs() -> list[Files]:
    modes = {mode: [{}] for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")}
    return [{"a.png": data} for data in _pictures("PNG", {**modes, "RGB": [{}, {"compress_level": 0}]})]


def jpegs() -> list[Files]:
    modes = {"L": [{}, {"progressive": True}], "RGB": [{}, {"progressive": True, "quality": 30}, {"optimize": True}]}
    return [{"a.jpg": data} for data in _pictures("JPEG", {**modes, "CMYK": [{}]})]


def bmps() -> list[Files]:
    return [{"a.bmp": data} for data in _pictures("BMP", {mode: [{}] for mode in ("1", "L", "P", "RGB", "RGBA")})]


def tiffs() -> list[Files]:
    import tifffile

    compressions = [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "packbits"}]
    found = list(
        _pictures(
            "TIFF",
            {"L": compressions, "RGB": [*compressions, {"compression": "jpeg"}], "1": [{"compression": "group4"}]},
        )
    )
    arrays: list[tuple[np.ndarray[Any, Any], dict[str, Any]]] = [
        (array(8, 9).astype(np.float32), {}),
        ((65535 * array(16, 32, 3)).astype(np.uint16), {"photometric": "rgb"}),
        ((65535 * array(16, 32)).astype(np.uint16), {"tile": (16, 16), "compression": "zlib", "predictor": True}),
    ]
    for values, options in arrays:
        found.append(_bytes(lambda file, v=values, o=options: tifffile.imwrite(file, v, **o)))  # type: ignore[misc]
    return [{"a.tif": data} for data in found]


def npys(*arrays: np.ndarray[Any, Any]) -> Callable[[], list[Files]]:
    return lambda: [{"a.npy": _bytes(lambda file, v=values: np.save(file, v))} for values in arrays]  # type: ignore[misc]


def tiff_stacks() -> list[Files]:
    import tifffile

    values = array(3, 8, 9).astype(np.float32)
    options: list[dict[str, Any]] = [
        {},
        {"compression": "zlib"},
        {"bigtiff": True},
        {"imagej": True},
        {"contiguous": False},
    ]
    return [
        {"a.tif": _bytes(lambda f, o=o: tifffile.imwrite(f, values, photometric="minisblack", **o))} for o in options
    ]  # type: ignore[misc]


def _hdf5(write: Callable[[Any], object], **options: Any) -> bytes:
    import h5py

    def into(buffer: io.BytesIO) -> None:
        with h5py.File(buffer, "w", **options) as file:
            write(file)

    return _bytes(into)


_LAYOUTS: tuple[dict[str, Any], ...] = (
    {},
    {"chunks": (1, 4, 5)},
    {"chunks": (2, 8, 9), "compression": "gzip", "shuffle": True},
    {"chunks": (1, 8, 9), "compression": "lzf", "fletcher32": True},
    {"maxshape": (None, 8, 9)},
)


def hdf5_arrays() -> list[Files]:
    values = array(3, 8, 9).astype(np.float32)
    versions: list[dict[str, Any]] = [{}, {"libver": "latest"}]
    return [
        {"a.h5": _hdf5(lambda file, o=layout: file.create_dataset("data", data=values, **o), **version)}  # type: ignore[misc]
        for layout in _LAYOUTS
        for version in versions
    ]


def lodopab_pairs() -> list[Files]:
    found = []
    for layout in _LAYOUTS[:4]:
        observed, true = array(3, 8, 9).astype(np.float32), array(3, 9, 9).astype(np.float32)
        names = {"observation_train_000.hdf5": observed, "ground_truth_train_000.hdf5": true}
        found.append(
            {n: _hdf5(lambda file, v=v, o=layout: file.create_dataset("data", data=v, **o)) for n, v in names.items()}  # type: ignore[misc]
        )
    return found


def complex_array(*shape: int) -> np.ndarray[Any, Any]:
    values = array(*shape, 2).astype(np.float32).view(np.complex64)[..., 0]
    values[..., 1] = 0
    return values


def fastmri_files() -> list[Files]:
    def write(file: Any, shape: tuple[int, ...]) -> None:
        file["kspace"] = complex_array(*shape)
        file["ismrmrd_header"] = "<x/>"

    return [{"a.h5": _hdf5(lambda file, s=shape: write(file, s))} for shape in ((3, 8, 6), (2, 3, 8, 6))]  # type: ignore[misc]


_XML = """<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>8</x><y>6</y><z>1</z></matrixSize></encodedSpace>
<reconSpace><matrixSize><x>4</x><y>6</y><z>1</z></matrixSize></reconSpace><trajectory>cartesian</trajectory>
<encodingLimits><kspace_encoding_step_1><center>3</center></kspace_encoding_step_1></encodingLimits>
</encoding></ismrmrdHeader>"""


def ismrmrd_files() -> list[Files]:
    import h5py

    words = (
        "kspace_encode_step_1",
        "kspace_encode_step_2",
        "average",
        "slice",
        "contrast",
        "phase",
        "repetition",
        "set",
        "segment",
    )
    counter = [(name, "<u2") for name in words]
    head = [
        ("flags", "<u8"),
        *((n, "<u2") for n in ("number_of_samples", "active_channels", "discard_pre", "discard_post", "center_sample")),
    ]
    floats = h5py.vlen_dtype(np.float32)
    record = np.dtype([("head", [*head, ("idx", counter)]), ("traj", floats), ("data", floats)])

    def write(file: Any, xml: str) -> None:
        rows = np.zeros(4, record)
        for i, line in enumerate((0, 2, 3, 4)):
            rows["head"]["number_of_samples"][i], rows["head"]["active_channels"][i] = 8, 3
            rows["head"]["center_sample"][i], rows["head"]["idx"]["kspace_encode_step_1"][i] = 4, line
            rows["traj"][i], rows["data"][i] = np.zeros(0, np.float32), array(48).astype(np.float32)
        file.create_dataset("dataset/data", data=rows, maxshape=(None,), chunks=(4,))
        file.create_dataset("dataset/xml", data=np.array([xml], dtype=object), dtype=h5py.string_dtype())

    texts = [
        _XML,
        *(
            mutated("text", [_XML.encode()], random.Random(i)).decode("ascii", "ignore").replace("\0", "")
            for i in range(20)
        ),
    ]
    return [{"a.h5": _hdf5(lambda file, xml=text: write(file, xml))} for text in texts]  # type: ignore[misc]


def _small_dicom(rows: int = 16) -> Iterator[bytes]:
    """A real slice, and neighbours of it, cut to few pixels."""
    import pydicom

    source = Path(pydicom.__file__).parent / "data" / "test_files" / "CT_small.dcm"
    for number in range(3):
        dataset = pydicom.dcmread(source)
        dataset.PixelData = dataset.pixel_array[:rows, :rows].tobytes()
        dataset.Rows = dataset.Columns = rows
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{dataset.SOPInstanceUID}.{number}"
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient, dataset.InstanceNumber = [x, y, z + 5 * number], number
        if "DataSetTrailingPadding" in dataset:
            del dataset.DataSetTrailingPadding
        yield _bytes(dataset.save_as)


def dicom_slices() -> list[Files]:
    import pydicom

    plain = next(_small_dicom())
    dataset = pydicom.dcmread(io.BytesIO(plain))
    dataset.compress(pydicom.uid.RLELossless)
    return [{"a.dcm": plain}, {"a.dcm": _bytes(dataset.save_as)}]


def dicom_series() -> list[Files]:
    return [{f"{i}.dcm": data for i, data in enumerate(_small_dicom())}]


def models() -> list[Files]:
    return [{"model.safetensors": path.read_bytes()} for path in sorted((DATA / "models").glob("*.safetensors"))]


def run_files(*patterns: str) -> Callable[[], list[Files]]:
    files = {
        p.relative_to(DATA / "run").as_posix(): p for pattern in patterns for p in sorted((DATA / "run").glob(pattern))
    }
    return lambda: [{name: path.read_bytes() for name, path in files.items()}]


def checkpoints() -> list[Files]:
    """One of them alone: a damaged one beside another is passed over."""
    return [{name: data} for name, data in run_files("checkpoint/*")()[0].items()]


GEOMETRIES = (
    'kind = "parallel"\nangles = 8\nimage_size = 16\ndetectors = 25\npixel_size = 0.5\ndetector_pitch = 0.5\n',
    'kind = "fan"\nangles = [0.0, 45.0, 90.0]\nangle_unit = "degree"\nimage_size = 16\ndetectors = 25\npixel_size = 1\n'
    'detector_pitch = 2.5\nsource_to_center = 40\nsource_to_detector = 80\ndetector_shape = "curved"\n'
    "dead_detectors = [3, 4]\nimage_center = [0.5, 0]\ndetector_offset = 0.25\n",
    'kind = "parallel"\nangles = 8\nfirst_angle = 0.1\nangular_range = 2.0\nimage_size = 16\ndetectors = 25\n'
    "pixel_size = 1e-3\ndetector_pitch = 1e-3\n",
)


def published_ridges() -> list[Files]:
    config = {
        "net_params": {"channels": [1, 2, 3], "kernel_size": 3},
        "activation_params": {"n_knots": 9, "knots_range": 0.1},
    }
    state = {
        "lmbd": torch.tensor(6.0),
        "mu": torch.tensor(1.7),
        "conv_layer.conv_layers.0.parametrizations.weight.original": torch.from_numpy(array(2, 1, 3, 3)),
        "conv_layer.conv_layers.1.parametrizations.weight.original": torch.from_numpy(array(3, 2, 3, 3)),
        "activation.coefficients_vect": torch.from_numpy(0.02 * array(27)).cumsum(0),
    }
    other = {
        "multi_convolution": {"num_channels": [1, 2, 3], "size_kernels": [3, 5]},
        "spline_activation": {"num_knots": 9, "x_min": -0.1, "x_max": 0.1},
        "noise_range": [0, 30],
        "noise_val": 25,
        "rho_wcvx": 1.0,
    }
    weights = {
        "mu_": torch.tensor(1.1),
        "conv_layer.conv_layers.0.parametrizations.weight.original": torch.from_numpy(array(2, 1, 3, 3)),
        "conv_layer.conv_layers.1.weight": torch.from_numpy(array(3, 2, 5, 5)),
        "activation_cvx.coefficients": torch.linspace(-0.1, 0.1, 9)[None],
        "activation_ccv.coefficients": 0.9 * torch.linspace(-0.1, 0.1, 9)[None],
        "spline_scaling.coefficients": torch.from_numpy(3.0 + array(3, 4)),
    }
    found = []
    for described, tensors in ((config, state), (other, weights)):
        content = {"epoch": 1, "state_dict": {key: value.float() for key, value in tensors.items()}}
        saved = _bytes(lambda file, c=content: torch.save(c, file))  # type: ignore[misc]
        found.append({"config.json": json.dumps(described).encode(), "checkpoints/checkpoint_1.pth": saved})
    return found
