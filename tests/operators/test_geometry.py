"""Geometries and the TOML files that describe them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import registry
import torch

import learnreg as lr
from learnreg.models.toml import to_toml
from learnreg.operators import FanBeam2D, FanGeometry, ParallelBeam2D, ParallelGeometry, from_geometry
from learnreg.operators.tomography.geometry_file import read_geometry

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "geometry.md"

PARALLEL: dict[str, Any] = {
    "kind": "parallel",
    "image_size": 16,
    "pixel_size": 0.5,
    "angles": 12,
    "detectors": 31,
    "detector_pitch": 0.4,
}
FAN: dict[str, Any] = PARALLEL | {
    "kind": "fan",
    "detectors": 61,
    "source_to_center": 20.0,
    "source_to_detector": 35.0,
}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(table: dict[str, Any]) -> Path:
        path = tmp_path / "scan.toml"
        path.write_text(to_toml(table), encoding="utf-8")
        return path

    return write


def test_a_file_is_its_geometry(write: Any) -> None:
    parallel = read_geometry(write(PARALLEL | {"detector_offset": -1.5}))
    angles = tuple(math.pi * k / 12 for k in range(12))
    assert parallel == ParallelGeometry(
        image_size=16, angles=angles, detectors=31, pixel_size=0.5, detector_pitch=0.4, detector_offset=-1.5
    )
    fan = read_geometry(write(FAN))
    assert isinstance(fan, FanGeometry)
    assert fan.angles == pytest.approx([2 * math.pi * k / 12 for k in range(12)])
    assert (fan.source_to_center, fan.source_to_detector) == (20.0, 35.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fan.detectors = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"angles": [0, 30.0, 90], "angle_unit": "degree"}, [0, math.pi / 6, math.pi / 2]),
        ({"angles": [0.0, 1.0, 2.5]}, [0, 1, 2.5]),
        ({"angles": 4, "first_angle": 10, "angle_unit": "degree"}, [math.pi * (k / 4 + 1 / 18) for k in range(4)]),
        ({"angles": 3, "angular_range": 1.5}, [0, 0.5, 1.0]),
        ({"angles": 2, "angular_range": -180, "angle_unit": "degree"}, [0, -math.pi / 2]),
    ],
)
def test_angles(write: Any, changes: dict[str, Any], expected: list[float]) -> None:
    assert read_geometry(write(PARALLEL | changes)).angles == pytest.approx(expected)


def test_operators_from_files(write: Any) -> None:
    pytest.importorskip("astra")
    A = from_geometry(write(PARALLEL))
    assert isinstance(A, ParallelBeam2D)
    assert (A.domain_shape, A.range_shape) == ((1, 16, 16), (1, 12, 31))
    x = registry.rand(1, 1, 16, 16)
    doubled = from_geometry(write(PARALLEL | {"pixel_size": 1.0, "detector_pitch": 0.8}))
    torch.testing.assert_close(doubled(x), 2 * A(x))
    fan = from_geometry(write(FAN), symmetry="none", kernel="strip")
    assert isinstance(fan, FanBeam2D)
    assert fan.kernel == "strip"
    with pytest.raises(lr.ShapeError, match=re.escape("(1, 1, 12, 33) has 33 detectors, the geometry 61")):
        fan.adjoint(torch.zeros(1, 1, 12, 33))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (PARALLEL | {"kind": ["parallel"]}, "kind=['parallel']; expected 'parallel' or 'fan'."),
        (PARALLEL | {"kind": 3}, "kind=3; expected 'parallel' or 'fan'."),
        (PARALLEL | {"angle_unit": ["degree"]}, "angle_unit=['degree']: expected 'radian' or 'degree'."),
        (PARALLEL | {"pixel_size": 1e308}, "pixel_size=1e+308): expected a positive, finite length, 1e-12 to 1e+12"),
        (PARALLEL | {"pixel_size": 1e-300}, "pixel_size=1e-300): expected a positive, finite length, 1e-12 to"),
        (PARALLEL | {"pixel_size": 10**400}, "pixel_size: an integer of 401 digits; expected a number"),
        (PARALLEL | {"angles": [10**400]}, "angles: an integer of 401 digits; expected a number"),
        (PARALLEL | {"angles": [0.0, [1.0]]}, "angles=[1.0]: expected a number"),
        (PARALLEL | {"image_size": 10**400}, "expected at most 32,768"),
        (PARALLEL | {"image_size": 100_000}, "image_size=100000): expected at most 32,768"),
        (PARALLEL | {"detectors": 10**12}, "detectors=1000000000000): expected at most 131,072"),
        (PARALLEL | {"angles": 10**9}, "angles=1000000000): expected at most 100,000"),
        (PARALLEL | {"angles": [0.0] * 100_001}, "100,001 of them, expected at most 100,000"),
        (PARALLEL | {"first_angle": math.inf, "angle_unit": "radian"}, "NaN or infinite entries"),
        (PARALLEL | {"first_angle": 1e308, "angle_unit": "degree"}, "all 12 views would have one angle"),
        (PARALLEL | {"angular_range": 0}, "angular_range=0 from 0: all 12 views would have one angle"),
        (PARALLEL | {"angular_range": 1e-17, "first_angle": 3}, "all 12 views would have one angle"),
        (PARALLEL | {"first_angle": 1e9, "angle_unit": "radian"}, "beyond 1e+06 they lose their digits"),
        (PARALLEL | {"angles": [0.0, -1e9], "angle_unit": "radian"}, "-1e+09 radians"),
        (PARALLEL | {"angles": 4, "angular_range": 1e13, "angle_unit": "degree"}, "Give angles within a few turns"),
        (PARALLEL | {"detector_offset": 1e300}, "detector_offset=1e+300): expected a finite length"),
        (PARALLEL | {"detector_pitch": 1e11}, "that is 2e+11 pixels of side 0.5; all lengths are in one unit"),
        (FAN | {"source_to_detector": 1e11}, "that is 2e+11 pixels of side 0.5"),
        (PARALLEL | {"image_center": 1.0}, "image_center=1.0): expected two lengths, (x, y)"),
        (PARALLEL | {"image_center": [1.0, 2.0, 3.0]}, "expected two lengths, (x, y)"),
        (PARALLEL | {"image_center": [1.0, math.nan]}, "image_center=nan): expected a finite length"),
        (PARALLEL | {"image_center": ["left", 0.0]}, "image_center='left'): expected a finite length"),
        (FAN | {"image_center": [18.0, 0.0]}, "the source runs through the image, whose corners are 22.36 from"),
        (PARALLEL | {"dead_detectors": [31]}, "there is no number 31; the 31 detectors are counted from 0 to 30"),
        (PARALLEL | {"dead_detectors": [-1]}, "there is no number -1; the 31 detectors are counted from 0 to 30"),
        (PARALLEL | {"dead_detectors": [4, 3, 4]}, "4 is named twice"),
        (PARALLEL | {"dead_detectors": list(range(31))}, "all 31 detectors are dead, which leaves nothing to measure"),
        (PARALLEL | {"dead_detectors": 3}, "dead_detectors=3): expected a list of whole numbers, counted from 0"),
        (PARALLEL | {"dead_detectors": "3-5"}, "dead_detectors='3-5'): expected a list of whole numbers"),
        (PARALLEL | {"dead_detectors": [1.5]}, "dead_detectors=[1.5]): expected a list of whole numbers"),
        (PARALLEL | {"dead_detectors": [True]}, "dead_detectors=[True]): expected a list of whole numbers"),
        (PARALLEL | {"detector_shape": "curved"}, "'detector_shape' is unknown. It belongs to kind='fan'."),
        (FAN | {"detector_shape": "arc"}, "detector_shape='arc'): expected 'flat' or 'curved'"),
        (FAN | {"detector_shape": "curved", "detector_pitch": 2.0}, "the arc reaches 1.74 radians from the central"),
        (PARALLEL | {"detecters": 5}, "the key 'detecters' is unknown. Did you mean 'detectors'?"),
        (PARALLEL | {"source_to_center": 5}, "'source_to_center' is unknown. It belongs to kind='fan'."),
        (PARALLEL | {"kind": "paralel"}, "kind='paralel'; expected 'parallel' or 'fan'. Did you mean 'parallel'?"),
        ({"image_size": 4}, "the key 'kind' is missing; expected 'parallel' or 'fan'."),
        ({"kind": "fan", "image_size": 4}, "kind='fan' needs the key 'angles', 'detectors', 'pixel_size'"),
        (PARALLEL | {"angles": 0}, "got angles=0, expected at least one"),
        (PARALLEL | {"angles": []}, "got no angles, expected at least one"),
        (PARALLEL | {"angles": ["a"]}, "angles='a': expected a number"),
        (PARALLEL | {"angles": 1.5}, "angles=1.5: expected a whole number"),
        (PARALLEL | {"angles": [0.0], "first_angle": 1.0}, "first_angle needs a number of angles, not a list"),
        (PARALLEL | {"angle_unit": "degrees"}, "angle_unit='degrees'.*Did you mean 'degree'"),
        (PARALLEL | {"image_size": True}, "image_size=True: expected a whole number"),
        (PARALLEL | {"detectors": -2}, "detectors=-2): expected a positive integer"),
        (PARALLEL | {"pixel_size": "1 mm"}, "pixel_size='1 mm': expected a number"),
        (PARALLEL | {"pixel_size": 0}, "pixel_size=0.0): expected a positive, finite length"),
        (PARALLEL | {"detector_pitch": math.inf}, "detector_pitch=inf): expected a positive, finite length"),
        (PARALLEL | {"detector_offset": math.nan}, "detector_offset=nan): expected a finite length"),
        (FAN | {"source_to_center": 5.6}, "the source runs through the image, whose corners are 5.657 from"),
        (FAN | {"source_to_detector": 19}, "the detector is in front of the axis of rotation"),
    ],
)
def test_errors_name_the_file_and_the_key(write: Any, table: dict[str, Any], message: str) -> None:
    path = write(table)
    pattern = message if ".*" in message else re.escape(message)
    with pytest.raises(lr.ConfigError, match=rf"^{re.escape(str(path))}: .*{pattern}"):
        read_geometry(path)


def test_further_keys(write: Any) -> None:
    table = {"image_center": [0.25, -0.5], "dead_detectors": [7, 3], "detector_shape": "curved"}
    fan = read_geometry(write(FAN | table))
    assert isinstance(fan, FanGeometry)
    assert (fan.image_center, fan.dead_detectors, fan.detector_shape) == ((0.25, -0.5), (3, 7), "curved")
    assert fan.scaled(2.0).image_center == (0.5, -1.0)
    assert fan.in_pixels().image_center == (0.5, -1.0)
    assert fan.config()["dead_detectors"] == (3, 7)
    assert not set(table) & set(read_geometry(write(FAN)).config()), "stored files of scans without them do not change"


def test_lengths_of_any_kind_are_floats() -> None:
    """A matrix is kept under its numbers, which are written down."""
    lengths = {"pixel_size": np.float32(0.5), "detector_pitch": torch.tensor(0.25)}
    g = ParallelGeometry(image_size=np.int64(4), angles=np.linspace(0, 1, 3), detectors=np.int32(9), **lengths)  # type: ignore[arg-type]
    assert json.loads(json.dumps(g.config()))["angles"] == [0.0, 0.5, 1.0]
    assert g == ParallelGeometry(image_size=4, angles=(0.0, 0.5, 1.0), detectors=9, pixel_size=0.5, detector_pitch=0.25)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(lr.DataError, match="does not exist"):
        read_geometry(tmp_path / "absent.toml")
    path = tmp_path / "scan.toml"
    for content in (b"kind = ", b"\xff\xfe", b"kind = " + 5000 * b"[", b"kind = " + 5000 * b"1"):
        path.write_bytes(content)
        with pytest.raises(lr.ConfigError, match="not a TOML file"):
            read_geometry(path)


def test_suspicious_files_warn(write: Any) -> None:
    pytest.importorskip("astra")
    for changes in ({"angles": [0.0, 90.0]}, {"angles": 4, "angular_range": 180.0}):
        with pytest.warns(UserWarning, match='looks like degrees; angles are radians: set angle_unit = "degree"'):
            read_geometry(write(PARALLEL | changes))
    with pytest.warns(
        UserWarning, match="detector is too narrow for the image.*radius 3 only, half.* is 4;.*truncated"
    ):
        from_geometry(write(PARALLEL | {"detectors": 15}))
    with pytest.warns(UserWarning, match="too narrow"):
        from_geometry(write(PARALLEL | {"detector_offset": 3.0}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_geometry(write(PARALLEL | {"angles": [0.0, 12.0], "angle_unit": "radian"}))
        read_geometry(write(FAN | {"angles": 1000, "angular_range": 720, "angle_unit": "degree"}))
        half = {"detector_offset": 3.0, "angular_range": 360, "angle_unit": "degree"}
        from_geometry(write(PARALLEL | half))  # opposite views see the rest


@pytest.mark.parametrize("offset", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["parallel", "fan", "curved"])
def test_what_a_detector_sees(kind: str, offset: float) -> None:
    """The outermost rays touch the visible disc, and covering_detectors() is the smallest number that covers one."""
    pytest.importorskip("astra")
    table = {key: value for key, value in (PARALLEL if kind == "parallel" else FAN).items() if key != "kind"}
    table |= {"angles": (0.3,), "detector_offset": offset}
    if kind == "curved":
        table["detector_shape"] = kind
    geometry: Any = (ParallelGeometry if kind == "parallel" else FanGeometry)(**table)
    half = 0.5 * geometry.detectors * geometry.detector_pitch - offset
    if kind == "fan":
        expected = geometry.source_to_center * math.sin(math.atan(half / geometry.source_to_detector))
    elif kind == "curved":
        expected = geometry.source_to_center * math.sin(half / geometry.source_to_detector)
    else:
        expected = half
    assert geometry.visible_radius == pytest.approx(expected)
    for radius in (1.0, 2.5, geometry.image_side / math.sqrt(2)):
        count = geometry.covering_detectors(radius)
        assert count % 2 == 1
        assert dataclasses.replace(geometry, detectors=count).visible_radius >= radius * (1 - 1e-9)
        assert count <= 2 or dataclasses.replace(geometry, detectors=count - 2).visible_radius < radius
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataclasses.replace(geometry, detectors=geometry.covering_detectors()).warn_if_truncated()


def test_the_document_s_examples(tmp_path: Path) -> None:
    pytest.importorskip("astra")
    text = DOCUMENT.read_text(encoding="utf-8")
    examples = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert [tomllib.loads(example)["kind"] for example in examples] == ["parallel", "fan", "fan"]
    for example in examples:
        path = tmp_path / "scan.toml"
        path.write_text(example, encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read_geometry(path).warn_if_truncated()
    further = ("image_center", "dead_detectors", "detector_shape")
    for key in (*FAN, *further, "detector_offset", "first_angle", "angular_range", "angle_unit"):
        assert f"| `{key}` |" in text, f"docs/geometry.md does not document {key}"
