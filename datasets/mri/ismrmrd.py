"""Files of the ISMRM raw data format: one record for each line of k-space, and an XML header."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from learnreg.datasets.files.checks import check_claim
from learnreg.datasets.files.hdf5 import check_chunks, open_hdf5
from learnreg.errors import DataError

__all__ = ["read_ismrmrd"]

# Source: ISMRM Raw Data Format, https://ismrmrd.readthedocs.io: flags count from 1.
_REVERSED = 1 << 21
_NOT_IMAGING = sum(1 << (flag - 1) for flag in (19, 20, 23, 24, 26, 27, 28, 29))
"""Noise, calibration alone, navigators, phase correction, feedback, dummy and surface-coil scans."""
_CHOSEN = ("contrast", "phase", "repetition", "set")
_HEADER_LIMIT = 1 << 24
_COLLECTION = b"GCOL\1\0\0\0"


def read_ismrmrd(path: Path, select: Mapping[str, int]) -> tuple[np.ndarray[Any, Any], tuple[int, int]]:
    """Complex64 (slices, coils, H, W), H along the readout, each line at its place in the encoded matrix and the mean
    where it was measured several times; and the sides of the image that is meant.

    Raises
    ------
    DataError: as ``read_kspace``.
    """
    unknown = sorted(set(select) - set(_CHOSEN))
    if unknown:
        raise DataError(f"select={dict(select)}: there is no {unknown[0]!r}.", path, f"Known: {', '.join(_CHOSEN)}.")
    _check_heaps(path)
    header = _Header(path)
    with open_hdf5(path, "dataset/data", kinds="V") as dataset:
        if not {"head", "data"} <= set(dataset.dtype.names or ()) or dataset.ndim != 1:
            raise DataError("its records are not those of ISMRMRD.", path, "Export it again.")
        check_claim(path, dataset.size * dataset.dtype.itemsize)
        check_chunks(dataset, path)
        _check_lines(dataset, path)
        heads = np.asarray(dataset.fields("head")[()])
        imaging = _imaging(heads, select, path)
        lines = dataset.fields("data")  # read one by one: many records may share, and multiply, one piece of the file
        return _placed(heads[imaging], (lines[i] for i in imaging), header, path), header.image


def _check_heaps(path: Path) -> None:
    """Refuse free space of no size in a collection of values of variable length: the HDF5 library would look for its
    end for ever. (HDF5 File Format Specification, III.E, Global Heap.)"""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_COLLECTION)
        while start >= 0:
            place, end = start + 16, min(start + int.from_bytes(data[start + 8 : start + 16], "little"), len(data))
            while place + 16 <= end:
                number, size = struct.unpack_from("<H6xQ", data, place)
                if number == size == 0:
                    raise DataError("its lists of values are damaged.", path, "Copy or export it again.")
                place = place + 16 + -(-size // 8) * 8 if number else end
            start = data.find(_COLLECTION, start + 1)


def _check_lines(records: Any, path: Path) -> None:
    """Refuse lines longer than their file: memory would be taken for them before they are looked for. Of compressed
    records the lengths cannot be seen."""
    if records.chunks is None or records.id.get_create_plist().get_nfilters():
        return
    kind = records.id.get_type()
    place = kind.get_member_offset(kind.get_member_index(b"data"))
    length = np.dtype({"names": ["length"], "formats": ["<u4"], "offsets": [place], "itemsize": kind.get_size()})
    for start in range(0, records.size, records.chunks[0]):
        stored = np.frombuffer(records.id.read_direct_chunk((start,))[1], length)
        _check_length(4 * int(stored["length"].max(initial=0)), path)


def _check_text(dataset: Any, path: Path) -> None:
    """The same for a text of variable length."""
    place = dataset.id.get_offset()
    if place is not None and dataset.dtype.kind == "O":
        with path.open("rb") as file:
            file.seek(place)
            _check_length(int.from_bytes(file.read(4), "little"), path)


def _check_length(promised: int, path: Path) -> None:
    size = path.stat().st_size
    if promised > size:
        raise DataError(f"it promises {promised:,} bytes, the file has {size:,}.", path, "Copy or export it again.")


def _imaging(heads: np.ndarray[Any, Any], select: Mapping[str, int], path: Path) -> np.ndarray[Any, Any]:
    """Which records are lines of the chosen image."""
    imaging = np.flatnonzero((heads["flags"].astype(np.uint64) & np.uint64(_NOT_IMAGING)) == 0)
    for name in _CHOSEN:
        imaging = _choose(heads["idx"][name], imaging, name, select.get(name), path)
    if not len(imaging):
        raise DataError("it holds no line of an image, only noise or calibration.", path, "Export the imaging scan.")
    if (heads["flags"][imaging].astype(np.uint64) & np.uint64(_REVERSED)).any():
        raise DataError("some lines are read backwards (echo-planar imaging).", path, "Export regridded k-space.")
    if heads["idx"]["kspace_encode_step_2"][imaging].any():
        raise DataError("it is a three-dimensional scan.", path, "Transform along the slices and export each of them.")
    return imaging


def _choose(
    numbers: np.ndarray[Any, Any], imaging: np.ndarray[Any, Any], name: str, wanted: int | None, path: Path
) -> np.ndarray[Any, Any]:
    """The lines with the wanted number; without one, all, if they agree."""
    present = sorted(set(numbers[imaging].tolist()))
    if wanted is None:
        if len(present) > 1:
            raise DataError(
                f"it holds {len(present)} of {name}: {_few(present)}.", path, f"Choose one: select={{{name!r}: 0}}."
            )
        return imaging
    if wanted not in present:
        raise DataError(f"select={{{name!r}: {wanted!r}}}: it holds {_few(present)}.", path, "Choose one of these.")
    chosen: np.ndarray[Any, Any] = imaging[numbers[imaging] == wanted]
    return chosen


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + ", ..." * (len(numbers) > 8)


def _placed(heads: np.ndarray[Any, Any], lines: Iterable[Any], header: _Header, path: Path) -> np.ndarray[Any, Any]:
    coils = sorted(set(heads["active_channels"].tolist()))
    if len(coils) != 1 or coils[0] < 1:
        raise DataError(f"its lines are of {_few(coils)} coils.", path, "Export lines of the same coils.")
    slices = sorted(set(heads["idx"]["slice"].tolist()))
    height, width = header.encoded
    check_claim(path, len(slices) * coils[0] * height * width * 8)
    kspace = np.zeros((len(slices), coils[0], height, width), dtype=np.complex64)
    times = np.zeros((len(slices), width), dtype=np.int64)
    for head, line in zip(heads, lines, strict=True):
        samples = int(head["number_of_samples"])
        values = np.asarray(line, dtype=np.float32)
        if values.size != 2 * samples * coils[0]:
            raise DataError(
                f"a line has {values.size} numbers for {coils[0]} coils and {samples} complex samples.",
                path,
                "The file is damaged: export it again.",
            )
        first, place = int(head["discard_pre"]), height // 2 - int(head["center_sample"])
        last = samples - int(head["discard_post"])
        column = int(head["idx"]["kspace_encode_step_1"]) - header.center + width // 2
        if not (0 <= first <= last and place + first >= 0 and place + last <= height and 0 <= column < width):
            raise DataError(
                f"line {int(head['idx']['kspace_encode_step_1'])} with {samples} samples around "
                f"{int(head['center_sample'])} lies outside the encoded matrix {height} x {width}.",
                path,
                "Its header and its lines do not agree: export it again.",
            )
        s = slices.index(int(head["idx"]["slice"]))
        numbers = values.view(np.complex64).reshape(coils[0], samples)
        kspace[s, :, place + first : place + last, column] += numbers[:, first:last]
        times[s, column] += 1
    kspace /= np.maximum(times, 1)[:, None, None, :]
    return kspace


class _Header:
    """What of the XML header matters here: encoded: (readout, lines). image: (h, w). center: the line of frequency
    zero."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_hdf5(path, "dataset/xml", kinds="OS") as dataset:
            if dataset.size != 1:
                raise DataError(f"it has {dataset.size:,} XML headers, expected one.", path, "Export it again.")
            _check_text(dataset, path)
            text = np.ravel(dataset[()])[0]
        text = text if isinstance(text, bytes) else str(text).encode()
        if len(text) > _HEADER_LIMIT or b"<!DOCTYPE" in text or b"<!ENTITY" in text:
            raise DataError("its header is no plain XML of a scan.", path, "Export it again.")
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise DataError(f"its XML header is damaged ({error}).", path, "Export it again.") from error
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]  # the name without its namespace
        encoding = root.find("encoding")
        if encoding is None:
            raise DataError("its XML header has no encoding.", path, "Export it again.")
        trajectory = (encoding.findtext("trajectory") or "cartesian").strip().lower()
        if trajectory != "cartesian":
            raise DataError(
                f"its trajectory is {trajectory}, expected cartesian.",
                path,
                "Other trajectories: learnreg.operators.from_mrinufft.",
            )
        self.encoded = (self._number(encoding, "encodedSpace/x"), self._number(encoding, "encodedSpace/y"))
        self.image = (self._number(encoding, "reconSpace/x"), self._number(encoding, "reconSpace/y"))
        self.image = (min(self.image[0], self.encoded[0]), min(self.image[1], self.encoded[1]))
        center = encoding.findtext("encodingLimits/kspace_encoding_step_1/center")
        self.center = self.encoded[1] // 2 if center is None else self._whole(center, "center", least=0)

    def _number(self, encoding: ElementTree.Element, place: str) -> int:
        space, axis = place.split("/")
        return self._whole(encoding.findtext(f"{space}/matrixSize/{axis}") or "", place, least=1)

    def _whole(self, text: str, name: str, least: int) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= 2**16:
            raise DataError(f"its XML header says {text.strip()[:20]!r} for {name}.", self.path, "Export it again.")
        return number
