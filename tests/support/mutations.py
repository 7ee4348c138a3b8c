"""Damaged files: bytes changed at random, and changes that keep checksums and layout, so that decoders go further."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from support.byte_changes import BYTES, SIZES, Seeds

__all__ = ["STRUCTURED", "mutated"]

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 5, 10**9, 2**31, 2**63, 10**400, -0.5, 0.5, 1e-300, 1e300, "", "x", "1", "\0",
    "é" * 300, [], [1], [[[1]]], [1, 2], [10**5] * 3, [0, 0], {}, {"a": 1}, {"name": "fields-of-experts", "config": {}},
    {"name": None, "config": {}}, {"tensor": "filters"},
)  # fmt: skip
DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "U64",
    "C64",
    "F4",
)

WORDS = (
    "1e400", "-1", "0", "9" * 400, "9" * 5000, "nan", "-inf", "true", '""', '"x"', "[]", "[[1], 2]", "{a = 1}", "{}",
    "[" * 3000, "1979-05-27", "0x" + "f" * 99, "'''", '"\\ud800"', "1e-320", "3.5", "100000", "2000000000", "()",
    "None", "(" * 300,
)  # fmt: skip

TAGS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "RescaleSlope", "RescaleIntercept", "PixelSpacing", "PhotometricInterpretation", "NumberOfFrames", "Modality",
    "InstanceNumber",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelPaddingValue", "SOPClassUID", "SeriesInstanceUID",
)  # fmt: skip


def mutated(kind: str, seeds: Seeds, order: random.Random) -> bytes:
    """One of the seeds, changed once to three times; ``kind`` names a row of ``STRUCTURED``, or none."""
    data = order.choice(seeds)
    structured = STRUCTURED.get(kind)
    if structured is not None and order.random() < 0.6:
        with contextlib.suppress(Exception):  # a layout that this seed does not have
            data = structured(data, order)
        if order.random() < 0.7:
            return data
    for _ in range(order.choice((1, 1, 1, 2, 3))):
        data = order.choice(BYTES)(data, seeds, order)
    return data


# ---- formats ---------------------------------------------------------------------------------------------------------


def _png(data: bytes, order: random.Random) -> bytes:
    """Chunks changed, moved, doubled or left out; their checksums are right."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        chunks.append([data[place + 4 : place + 8], data[place + 8 : place + 8 + length]])
        place += 12 + length
    i = order.randrange(len(chunks))
    what = order.choice(("header", "header", "content", "pixels", "remove", "double", "move", "add"))
    if what == "header":
        field, width = order.choice(((0, 4), (4, 4), (8, 1), (9, 1), (10, 1), (11, 1), (12, 1)))
        head = bytearray(chunks[0][1])
        head[field : field + width] = (order.choice(SIZES) % 2 ** (8 * width)).to_bytes(width, "big")
        chunks[0][1] = bytes(head)
    elif what == "content":
        chunks[i][1] = order.choice(BYTES)(chunks[i][1], [c[1] for c in chunks], order)
    elif what == "pixels":
        at = next(k for k, chunk in enumerate(chunks) if chunk[0] == b"IDAT")
        raw = zlib.decompress(b"".join(chunk[1] for chunk in chunks if chunk[0] == b"IDAT"))
        chunks = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
        chunks.insert(at, [b"IDAT", zlib.compress(order.choice(BYTES)(raw, [raw], order))])
    elif what == "remove":
        del chunks[i]
    elif what == "double":
        chunks.insert(i, chunks[i])
    elif what == "move":
        chunks.insert(order.randrange(len(chunks)), chunks.pop(i))
    else:
        name = order.choice((b"PLTE", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"iCCP", b"gAMA", b"sBIT", b"zTXt", b"iTXt"))
        chunks.insert(order.randint(1, len(chunks)), [name, order.randbytes(order.choice((0, 1, 3, 6, 8, 26, 900)))])
    framed = (
        len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big") for name, body in chunks
    )
    return data[:8] + b"".join(framed)


def _tiff(data: bytes, order: random.Random) -> bytes:
    """Entries of a directory with other tags, types, counts and values, or a next directory elsewhere."""
    end = "<" if data[:2] == b"II" else ">"
    start = struct.unpack(end + "I", data[4:8])[0]
    (count,) = struct.unpack(end + "H", data[start : start + 2])
    after = start + 2 + 12 * count
    if order.random() < 0.1:
        following = order.choice((start, 8, 0, after, len(data), 1, 2**32 - 1, order.randrange(len(data))))
        return data[:after] + struct.pack(end + "I", following) + data[after + 4 :]
    at = start + 2 + 12 * order.randrange(count)
    tag, kind, number, value = struct.unpack(end + "HHII", data[at : at + 12])
    what = order.randrange(5)
    if what == 0:
        tag = order.choice(
            (254, 256, 257, 258, 259, 262, 266, 270, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324)
        )
        tag = order.choice((tag, 325, 330, 338, 339, 347, 529, 530, 532, 33550, 34665, 50838, 50839, 65000))
    elif what == 1:
        kind = order.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18, 129, 65535))
    elif what == 2:
        number = order.choice(SIZES) % 2**32
    elif what == 3:
        value = order.choice((*SIZES, *range(10), 32773, 5, 7, 8, 50000, 34925, len(data), start)) % 2**32
    else:  # written as short numbers are
        value = struct.unpack("=I", struct.pack("=HH", order.choice(SIZES) % 2**16, 0))[0]
    return data[:at] + struct.pack(end + "HHII", tag, kind, number, value) + data[at + 12 :]


def _jpeg(data: bytes, order: random.Random) -> bytes:
    """Segments changed, left out or doubled; sizes in the frame header."""
    segments, place = [], 2
    while data[place] == 0xFF and data[place + 1] not in (0xDA, 0xD9):
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        segments.append(data[place : place + 2 + length])
        place += 2 + length
    i, what = order.randrange(len(segments)), order.randrange(4)
    if what == 0:
        frame = next(k for k, s in enumerate(segments) if s[1] in (0xC0, 0xC1, 0xC2))
        head, field = bytearray(segments[frame]), order.choice((4, 5, 7, 9))
        head[field : field + 2] = (order.choice(SIZES) % 2**16).to_bytes(2, "big")
        segments[frame] = bytes(head)
    elif what == 1:
        body = order.choice(BYTES)(segments[i][4:], [s[4:] for s in segments], order)[:65000]
        segments[i] = segments[i][:2] + (len(body) + 2).to_bytes(2, "big") + body
    elif what == 2:
        del segments[i]
    else:
        segments.insert(order.randrange(len(segments)), segments[i])
    return data[:2] + b"".join(segments) + data[place:]


def _npy(data: bytes, order: random.Random) -> bytes:
    """Another header, of the right length, before the same numbers."""
    length = int.from_bytes(data[8:10], "little")
    head, body = data[10 : 10 + length].decode("latin1"), data[10 + length :]
    if order.random() < 0.5:
        dtype = order.choice(("'<f4'", "'>f8'", "'<f2'", "'|u1'", "'<i8'", "'<c8'", "'<c16'", "'|O'", "'|S5'", "'<U3'"))
        dtype = order.choice(
            (dtype, "'<M8[ns]'", "'|V9'", "[('a', '<f4')]", "[('a', '|O')]", "'x'", "1", "'<f16'", "'|b1'")
        )
        shape = tuple(order.choice((0, 1, 3, 8, 16, -1, 10**6, 2**40, 2**63)) for _ in range(order.randrange(6)))
        head = f"{{'descr': {dtype}, 'fortran_order': {order.choice((True, False, 1, None))}, 'shape': {shape}, }}\n"
    else:
        head = _text(head.encode(), order).decode("latin1")
    return data[:8] + (len(head) % 65536).to_bytes(2, "little") + head.encode("latin1", "replace") + body


def _safetensors(data: bytes, order: random.Random) -> bytes:
    """A description with an odd value, and the SHA-256 that belongs to it, or other tensors."""
    import safetensors.torch

    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if order.random() < 0.25:
        entry = header[order.choice(list(header))]
        entry[order.choice(list(entry))] = order.choice((*ODD, *DTYPES, [0, 2**40], [2**40], [4, 0]))
        return _framed(json.dumps(header), data[8 + length :])
    tensors = safetensors.torch.load(data)
    text = header["__metadata__"]["learnreg"]
    what = order.randrange(8)
    if what == 0 and tensors:
        name = order.choice(list(tensors))
        tensors[name] = _other_tensor(tensors[name], order)
    elif what == 1 and tensors:
        tensors[order.choice(("x", "operator.config.mask", "data_term.weights"))] = tensors[order.choice(list(tensors))]
    elif what == 2:
        text = order.choice(
            (
                "",
                "[" * 5000,
                "null",
                "[]",
                '{"a":' * 3000,
                text.replace("[", "NaN", 1),
                text[:-1],
                text.replace(":", ": -", 1),
            )
        )
    else:
        text = json.dumps(_with_odd_value(json.loads(text), order))
    content = {name: tensor.clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(content, {"learnreg": text, "sha256": _digest(content, text)})


def _other_tensor(tensor: Any, order: random.Random) -> Any:
    import torch

    dtypes = (
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.bool,
        torch.complex64,
        torch.float8_e4m3fn,
        torch.float64,
    )
    what = order.randrange(5)
    if what == 0:
        return tensor.to(order.choice(dtypes))
    if what == 1:
        return tensor.flatten()[: order.choice((0, 1, 3))].clone()
    if what == 2:
        return tensor[None].clone()
    changed = tensor.flatten().clone().to(torch.float32)
    if changed.numel():
        changed[order.randrange(changed.numel())] = order.choice((float("nan"), float("inf"), 1e38, -1e38, -1.0, 0.0))
    return changed.reshape(tensor.shape)


def _digest(tensors: dict[str, Any], text: str) -> str:
    """As ``learnreg.models.tensor_files`` describes it."""
    import torch

    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _framed(header: str, rest: bytes) -> bytes:
    return len(header.encode()).to_bytes(8, "little") + header.encode() + rest


def _with_odd_value(content: Any, order: random.Random) -> Any:
    """The same content, of which one value, anywhere, is another, is left out or is nested deeply."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(min(len(value), 8)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(content)
    holder, key = order.choice(places)
    if order.random() < 0.15:
        del holder[key]
    elif order.random() < 0.05:
        for _ in range(order.choice((5, 400))):
            holder[key] = order.choice(([holder[key]], {"name": "scaled", "config": {"base": holder[key]}}))
    else:
        holder[key] = order.choice((*ODD, order.choice(places)[1]))
    return content


def _text(data: bytes, order: random.Random) -> bytes:
    """Words of a text replaced, lines doubled, left out or nested deeply."""
    text = data.decode("utf-8", "replace")
    if order.random() < 0.6:
        words = list(re.finditer(r"-?[\w.+]+|\"[^\"]*\"|'[^']*'|\[[^\]]*\]", text))
        word = order.choice(words)
        new = order.choice(WORDS)
        return (text[: word.start()] + new + text[word.end() :]).encode("utf-8", "replace")
    lines = text.split("\n")
    i, what = order.randrange(len(lines)), order.randrange(5)
    if what == 0:
        del lines[i]
    elif what == 1:
        lines.insert(i, lines[i])
    elif what == 2:
        lines.insert(
            i,
            order.choice(
                ("[a]", "[[a]]", "a.b.c = 1", "[" + "a." * 2000 + "b]", "= 1", "{", "}", '{"a": NaN}', "[1]", "null")
            ),
        )
    elif what == 3:
        lines[i] = lines[i][: order.randrange(len(lines[i]) + 1)]
    else:
        lines[i] += order.choice(("\0", "\r", "\ufeff", " # x", "é", "]" * 50, "," * 50))
    return "\n".join(lines).encode("utf-8", "replace")


def _json(data: bytes, order: random.Random) -> bytes:
    return json.dumps(_with_odd_value(json.loads(data), order)).encode()


def _zip(data: bytes, order: random.Random) -> bytes:
    """A member of an archive changed; its checksum is right."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as archive:
        chosen = order.choice(source.namelist())
        for name in source.namelist():
            body = source.read(name)
            if name == chosen:
                body = order.choice(BYTES)(body, [body], order)
            archive.writestr(name, body)
    return target.getvalue()


def _dicom(data: bytes, order: random.Random) -> bytes:
    """An element with an odd value, or with a length of its own."""
    import pydicom
    from pydicom.datadict import dictionary_VR

    if order.random() < 0.4:  # explicit VR: tag, VR, length
        places = [m.start() for m in re.finditer(rb"(US|SS|DS|IS|CS|LO|UI|SH|TM|DA|OW|SQ)", data[132:4000])]
        at = 132 + order.choice(places)
        what = order.randrange(2)
        new = order.choice((b"US", b"SQ", b"OB", b"UN", b"FD", b"DS", b"zz")) if what else b""
        length = (order.choice(SIZES) % 2**16).to_bytes(2, "little")
        return data[:at] + (new or data[at : at + 2] + length) + data[at + len(new or length) + 2 * (not what) :]
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    name = order.choice(TAGS)
    numbers = (0, 1, -1, 2, 3, 7, 8, 9, 12, 16, 32, 64, 255, 4096, 8192, 65535)
    texts = ("", "x", "1e308", "-1e308", "nan", "inf", "0", "1e-300", "9" * 16, "1\\2\\3", "é")
    value: Any = order.choice(numbers) if dictionary_VR(name) in ("US", "SS", "US or SS") else order.choice(texts)
    if order.random() < 0.15:
        delattr(dataset, name)
    else:
        dataset[name] = pydicom.DataElement(
            dataset[name].tag if name in dataset else name, dictionary_VR(name)[:2], value, validation_mode=0
        )
    target = io.BytesIO()
    dataset.save_as(target)
    return target.getvalue()


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "png": _png,
    "tiff": _tiff,
    "jpeg": _jpeg,
    "npy": _npy,
    "safetensors": _safetensors,
    "text": _text,
    "json": _json,
    "zip": _zip,
    "dicom": _dicom,
}
