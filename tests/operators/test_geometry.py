"""Geometries and the TOML files that describe them."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
import warnings
from pathlib import Path
from typing import Any

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


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(lr.DataError, match="cannot be read"):
        read_geometry(tmp_path / "absent.toml")
    path = tmp_path / "scan.toml"
    for content in (b"kind = ", b"\xff\xfe"):
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


@pytest.mark.parametrize("offset", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["parallel", "fan"])
def test_what_a_detector_sees(kind: str, offset: float) -> None:
    """The outermost rays touch the visible disc, and covering_detectors() is the smallest number that covers one."""
    pytest.importorskip("astra")
    table = {key: value for key, value in (FAN if kind == "fan" else PARALLEL).items() if key != "kind"}
    table |= {"angles": (0.3,), "detector_offset": offset}
    geometry: Any = (FanGeometry if kind == "fan" else ParallelGeometry)(**table)
    half = 0.5 * geometry.detectors * geometry.detector_pitch - offset
    if kind == "fan":
        expected = geometry.source_to_center * math.sin(math.atan(half / geometry.source_to_detector))
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
    assert [tomllib.loads(example)["kind"] for example in examples] == ["parallel", "fan"]
    for example in examples:
        path = tmp_path / "scan.toml"
        path.write_text(example, encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read_geometry(path).warn_if_truncated()
    for key in (*FAN, "detector_offset", "first_angle", "angular_range", "angle_unit"):
        assert f"| `{key}` |" in text, f"docs/geometry.md does not document {key}"
