from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segfleet.errors import DataError
from segfleet_pipelines.check import LabelRules, read_labels
from segfleet_pipelines.datasets.base import RawDataset, RawSample
from segfleet_pipelines.datasets.sources import FileSource
from segfleet_pipelines.image_codec import pack_image
from segfleet_pipelines.picture import check_pixels, read_header
from segfleet_pipelines.png_check import check_png


def encode(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def forge(rows: bytes, *, width: int = 4, height: int = 2, color: int = 0, interlaced: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


ANY_LABEL = dict.fromkeys(range(256), 0)
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (37, 41, 3), dtype=np.uint8).repeat(3, 0).repeat(3, 1)


@pytest.mark.parametrize(
    "array",
    [PHOTO, PHOTO[..., 0], np.dstack([PHOTO, PHOTO[..., 0]]), PHOTO[..., 0] > 99],
    ids=["RGB", "L", "RGBA", "1"],
)
def test_sound_pictures_pass(array: np.ndarray) -> None:
    assert check_png(encode(array))


def test_every_flipped_bit_and_every_cut_of_a_png_is_found() -> None:
    data = encode(PHOTO[:20, :20])
    for place in range(len(data)):
        with pytest.raises(DataError):
            check_pixels(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises(DataError):
            check_pixels(data[:place])


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_a_mask_is_found(tmp_path: Path, bit: int) -> None:
    """A decoder alone gives other labels for a tenth of them."""
    labels = RNG.integers(0, 9, (6, 7), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
    data, path = encode(labels), tmp_path / "mask.png"
    raw = RawSample("k", FileSource(path), FileSource(path))
    header, rules = read_header(data), LabelRules.of(RawDataset("all", ("a",), ((0, 0, 0),), 255, ANY_LABEL, {}))
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        with pytest.raises(DataError):
            read_labels(raw, header, rules)


def test_a_png_that_becomes_a_jpeg_is_checked_to_its_last_byte() -> None:
    data = encode(PHOTO[:20, :20])
    header = read_header(data)
    for place in range(len(data)):
        with pytest.raises(DataError):
            pack_image(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :], header, "jpeg95")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (forge(b"\0abcd" * 1), "pixels are not those"),
        (forge(b"\0abcd" * 3), "pixels are not those"),
        (forge(b"\0abcd" + b"\5abcd"), "unknown filter"),
        (forge(b"\0abcd" * 2, color=5), "type 5"),
        (b"GIF89a", "not a PNG"),
    ],
)
def test_what_checksums_do_not_show_is_found(data: bytes, message: str) -> None:
    assert check_png(forge(b"\0abcd" + b"\4abcd"))
    with pytest.raises(DataError, match=message):
        check_png(data)


def test_an_interlaced_picture_is_decoded() -> None:
    assert not check_png(forge(b"", interlaced=1))
    with pytest.raises(DataError, match="cut short"):
        check_pixels(forge(b"", interlaced=1))


def test_a_jpeg_is_judged_as_by_decoding_it_whole() -> None:
    """Brightness of blocks alone is enough: where all pixels fail, these fail, and nowhere else."""
    smooth = np.asarray(Image.fromarray(PHOTO).resize((200, 160)))
    rng = np.random.default_rng(1)
    verdicts = []
    for options in ({"quality": 75}, {"quality": 90, "progressive": True}, {"quality": 95, "subsampling": 0}):
        data = encode(smooth, "JPEG", **options)
        check_pixels(data)
        for _ in range(150):
            place = int(rng.integers(2, len(data)))
            damaged = bytearray(data[: place if rng.random() < 0.3 else None])
            if len(damaged) == len(data):
                damaged[place] ^= 1 << int(rng.integers(8))
            verdicts.append((fails(damaged, _decode), fails(damaged, check_pixels)))
    assert all(whole == quick for whole, quick in verdicts)
    assert 100 < sum(whole for whole, _ in verdicts) < 400


def _decode(data: bytes) -> None:
    Image.open(io.BytesIO(data)).load()


def fails(data: bytearray, check: object) -> bool:
    try:
        check(bytes(data))  # type: ignore[operator]
    except (DataError, OSError, ValueError, SyntaxError):
        return True
    return False
