from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from segfleet.errors import DataError
from segfleet_pipelines.picture import (
    check_pixels,
    colorize,
    decode_image,
    decode_mask,
    encode_mask,
    overlay,
    read_header,
)

PALETTE = [(255, 0, 0), (0, 255, 0)]


def encoded(image: Image.Image, fmt: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=fmt, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A tiny PNG of a huge black picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(8000, 8000), (12000, 12000), (50_000_001, 1)])
@pytest.mark.parametrize("opened", [read_header, decode_image, decode_mask, check_pixels])
def test_huge_pictures_are_refused_before_they_are_decoded(opened: object, width: int, height: int) -> None:
    with pytest.raises(DataError, match="50,000,000 pixels"):
        opened(bomb(width, height))  # type: ignore[operator]


@pytest.mark.parametrize("fmt", ["GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_only_jpeg_and_png_are_opened(fmt: str) -> None:
    data = encoded(Image.new("RGB", (4, 4)), fmt)
    for opened in (read_header, decode_image, check_pixels):
        with pytest.raises(DataError, match="neither a readable JPEG nor"):
            opened(data)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG"])
def test_pictures_cut_short_are_noticed(fmt: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), fmt)
    check_pixels(data)
    with pytest.raises(DataError, match="cut short"):
        check_pixels(data[: len(data) // 2])


def test_a_mask_keeps_its_labels_and_shows_its_palette() -> None:
    mask = np.array([[0, 1, 255]], np.uint8)
    data = encode_mask(mask, PALETTE)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "P"
        assert image.convert("RGB").getpixel((1, 0)) == (0, 255, 0)
        assert image.convert("RGB").getpixel((2, 0)) == (0, 0, 0)
    assert np.array_equal(decode_mask(data), mask)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "1", "I;16", "LA"])
def test_masks_of_another_layout_are_refused(mode: str) -> None:
    with pytest.raises(DataError, match=f"mode {mode}; save it as PNG"):
        decode_mask(encoded(Image.new(mode, (4, 4))))


def test_jpeg_masks_are_refused() -> None:
    with pytest.raises(DataError, match="JPEG of mode L"):
        decode_mask(encoded(Image.new("L", (4, 4)), "JPEG"))


@pytest.mark.parametrize(("mode", "expected"), [("L", (7, 7, 7)), ("RGBA", (1, 2, 3)), ("RGB", (1, 2, 3))])
def test_pictures_become_rgb(mode: str, expected: tuple[int, int, int]) -> None:
    color = {"L": 7, "RGBA": (1, 2, 3, 0), "RGB": (1, 2, 3)}[mode]
    assert decode_image(encoded(Image.new(mode, (3, 2), color)))[0, 0].tolist() == list(expected)


def test_orientation_is_reported_and_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)
    assert read_header(data).orientation == 6
    assert decode_image(data).shape == (4, 8, 3)


def test_colorize_and_overlay() -> None:
    mask = np.array([[0, 1, 255]], np.uint8)
    image = np.full((1, 3, 3), 100, np.uint8)
    assert colorize(mask, PALETTE).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 0]]]
    blended = overlay(image, mask, PALETTE, alpha=0.5)
    assert blended[0, 0].tolist() == [178, 50, 50]
    assert blended[0, 2].tolist() == [100, 100, 100]
