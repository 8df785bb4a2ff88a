from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from segfleet.errors import DataError
from segfleet_pipelines import jpeg_window, png_window
from segfleet_pipelines.decode import decode_window
from segfleet_pipelines.picture import Window, decode_image

JPEG95 = {"quality": 95, "subsampling": 0, "restart_marker_blocks": 8}


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours under light noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, fmt: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format=fmt, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def filtered_png(image: np.ndarray, filters: list[int], pieces: int = 3) -> bytes:
    """A PNG with a chosen filter for each row, its data in several chunks, written from the specification."""
    height, width, _ = image.shape
    rows = []
    above = np.zeros(width * 3, np.int64)
    for row, kind in zip(image.reshape(height, -1).astype(np.int64), filters, strict=True):
        left, corner = (np.concatenate((np.zeros(3, np.int64), line[:-3])) for line in (row, above))
        estimate = left + above - corner
        distances = np.abs(estimate - np.stack((left, above, corner)))
        paeth = np.choose(distances.argmin(axis=0), (left, above, corner))
        predicted = (np.zeros_like(row), left, above, (left + above) // 2, paeth)[kind]
        rows.append(bytes([kind]) + (row - predicted).astype(np.uint8).tobytes())
        above = row
    data = zlib.compress(b"".join(rows))
    size = -(-len(data) // pieces)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IDAT", data[place : place + size]) for place in range(0, len(data), size))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(parts) + chunk(b"IEND", b"")


def windows(height: int, width: int, count: int, seed: int = 0) -> Iterator[Window]:
    rng = np.random.default_rng(seed)
    yield Window(0, 0, height, width)
    yield Window(height - 1, width - 1, 1, 1)
    for _ in range(count):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        yield Window(top, left, int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1)))


def assert_windows_are_those_of_the_whole(data: bytes, count: int = 25) -> None:
    whole = decode_image(data)
    for window in windows(*whole.shape[:2], count):
        part = decode_window(data, window, whole.shape[:2])
        assert part.shape == (window.height, window.width, 3)
        assert np.array_equal(part, window.of(whole))


JPEGS = {
    "restarts": encoded(photo(200, 512), "JPEG", **JPEG95),
    "restarts, sides not of whole blocks": encoded(photo(133, 509), "JPEG", **JPEG95),
    "restarts, grey": encoded(photo(60, 256)[..., 0], "JPEG", **JPEG95),
    "restarts, other interval": encoded(photo(60, 240), "JPEG", subsampling=0, restart_marker_blocks=5),
    "restarts, own codes": encoded(photo(60, 256), "JPEG", **JPEG95, optimize=True),
    "restarts, RGB": encoded(photo(60, 256), "JPEG", keep_rgb=True, **JPEG95),
    "restarts across the ends of rows": encoded(photo(60, 480), "JPEG", **JPEG95),
    "restarts, longer than a row": encoded(photo(60, 80), "JPEG", subsampling=0, restart_marker_blocks=20),
    "restarts, subsampled": encoded(photo(64, 512), "JPEG", subsampling=2, restart_marker_blocks=8),
    "restarts, progressive": encoded(photo(64, 512), "JPEG", progressive=True, **JPEG95),
    "no restarts": encoded(photo(64, 100), "JPEG", quality=75),
    "progressive": encoded(photo(64, 100), "JPEG", progressive=True),
    "4:2:2": encoded(photo(64, 100), "JPEG", subsampling=1),
    "four colours": encoded(Image.fromarray(photo(40, 100)).convert("CMYK"), "JPEG"),
    "bytes behind the end": encoded(photo(64, 512), "JPEG", **JPEG95) + b"more",
}
CUT = [*list(JPEGS)[:6], "bytes behind the end"]


@pytest.mark.parametrize("name", JPEGS)
def test_a_window_of_a_jpeg_is_that_of_the_whole(name: str) -> None:
    assert_windows_are_those_of_the_whole(JPEGS[name])


@pytest.mark.parametrize("name", JPEGS)
def test_only_the_restart_intervals_of_the_window_are_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = simplejpeg.decode_jpeg

    def spy(data: bytes) -> np.ndarray:
        decoded.append(decode(data))
        return decoded[-1]

    height, width = decode_image(JPEGS[name]).shape[:2]
    monkeypatch.setattr(jpeg_window.simplejpeg, "decode_jpeg", spy)
    decode_window(JPEGS[name], Window(20, 70, 20, min(125, width - 70)), (height, width))
    if name in CUT:
        # Rows 16..39; columns 64..255, or 40..199 where an interval is 40 wide.
        assert [pixels.shape[:2] for pixels in decoded] == [(24, 160 if "other" in name else 192)]
    else:
        assert [pixels.shape[:2] for pixels in decoded] == ([] if name == "four colours" else [(height, width)])


@pytest.mark.parametrize("seed", range(4))
def test_a_window_of_a_png_is_that_of_the_whole_whatever_the_filters(seed: int) -> None:
    filters = np.random.default_rng(seed).integers(0, 5, 50).tolist()
    assert_windows_are_those_of_the_whole(filtered_png(photo(50, 61, seed), filters))


@pytest.mark.parametrize("kind", range(5))
def test_a_window_of_a_png_of_one_filter(kind: int) -> None:
    assert_windows_are_those_of_the_whole(filtered_png(photo(30, 40), [kind] * 30))


def test_a_png_larger_than_a_band_and_a_stored_block() -> None:
    image = photo(300, 700)
    assert image.nbytes > 2 * png_window._BAND
    assert_windows_are_those_of_the_whole(encoded(image, "PNG"), 8)
    assert_windows_are_those_of_the_whole(filtered_png(image, [4] * 300), 8)
    wide = photo(3, 30_000)
    assert_windows_are_those_of_the_whole(encoded(wide, "PNG"), 4)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(photo(20, 30)).convert("P"),
        Image.fromarray(photo(20, 30)).convert("L"),
        Image.fromarray(photo(20, 30)).convert("1"),
        Image.fromarray(photo(20, 30)).convert("LA"),
        Image.fromarray(photo(20, 30)).convert("RGBA"),
        Image.fromarray(photo(20, 30)[..., 0].astype(np.uint16) * 251),
    ],
    ids=lambda image: image.mode,
)
def test_other_layouts_of_png_take_the_general_way(image: Image.Image) -> None:
    assert_windows_are_those_of_the_whole(encoded(image, "PNG"), 5)


@pytest.mark.parametrize("fields", [(8, 2, 0, 0, 1), (16, 2, 0, 0, 0)], ids=["interlaced", "16 bits"])
def test_interlaced_and_deep_pngs_take_the_general_way(fields: tuple[int, ...]) -> None:
    header = struct.pack(">IIBBBBB", 1, 1, *fields)
    pixels = zlib.compress(bytes([0, 9, 9, 8, 8, 7, 7][: 1 + 3 * fields[0] // 8]))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    assert png_window.decode(data, Window(0, 0, 1, 1), 1, 1) is None
    assert_windows_are_those_of_the_whole(data, 0)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG"])
def test_orientation_is_not_applied(fmt: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(8, 512), fmt, exif=exif, **(JPEG95 if fmt == "JPEG" else {}))
    assert decode_window(data, Window(0, 0, 8, 512), (8, 512)).shape == (8, 512, 3)
    assert_windows_are_those_of_the_whole(data, 5)


def test_colour_notes_change_nothing() -> None:
    data = encoded(photo(20, 30), "PNG", icc_profile=b"x" * 200, transparency=(1, 2, 3))
    gamma = data[:33] + chunk(b"gAMA", struct.pack(">I", 100_000)) + data[33:]
    for with_notes in (data, gamma):
        assert_windows_are_those_of_the_whole(with_notes, 5)


SAMPLES = {
    "png": encoded(photo(40, 64), "PNG"),
    "jpeg": encoded(photo(40, 64), "JPEG"),
    "jpeg95": encoded(photo(40, 512), "JPEG", **JPEG95),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_another_size_than_expected_is_refused(name: str) -> None:
    height, width = decode_image(SAMPLES[name]).shape[:2]
    for size in ((height + 1, width), (width, height), (1, 1)):
        with pytest.raises(DataError, match=f"has {width}x{height} pixels, not {size[1]}x{size[0]}"):
            decode_window(SAMPLES[name], Window(0, 0, 1, 1), size)


def test_a_picture_beyond_the_bound_is_refused_before_it_is_decoded() -> None:
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    with pytest.raises(DataError, match="50,000,000 pixels"):
        decode_window(bomb, Window(0, 0, 1, 1), (10_000, 10_000))


def test_more_pixels_than_the_header_says_are_not_inflated() -> None:
    rows = zlib.compress(bytes(50_000_000))
    header = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    part = png_window.decode(data, Window(0, 0, 4, 4), 4, 4)
    assert part is not None
    assert not part.any()


@pytest.mark.parametrize("name", SAMPLES)
def test_cut_pictures_are_errors(name: str) -> None:
    data = SAMPLES[name]
    height, width = decode_image(data).shape[:2]
    for length in (0, 1, 8, 30, 100, len(data) // 2, len(data) - 20):
        with pytest.raises(DataError):
            decode_window(data[:length], Window(0, 0, height, width), (height, width))


@pytest.mark.parametrize("name", SAMPLES)
def test_damage_is_an_error_or_a_picture_of_the_right_size(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = SAMPLES[name]
    whole = decode_image(data)
    size = whole.shape[0], whole.shape[1]
    rng = np.random.default_rng(1)
    for window in windows(*size, 250):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), int(rng.integers(1, 4))):
            damaged[place] = rng.integers(256)
        try:
            part = decode_window(bytes(damaged), window, size)
        except DataError:
            continue
        assert part.shape == (window.height, window.width, 3)
        if name == "png":  # whose chunks have checksums
            assert np.array_equal(part, window.of(whole))


def test_a_row_with_an_unknown_filter_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    rows = zlib.compress(b"".join(bytes([7]) + bytes(12) for _ in range(4)))
    header = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_window(data, Window(0, 0, 4, 4), (4, 4))


def test_threads_do_not_disturb_each_other() -> None:
    jobs = [(data, window) for data in SAMPLES.values() for window in windows(40, 64, 10)]
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda job: decode_window(*job, decode_image(job[0]).shape[:2]), jobs)
    for (data, window), part in zip(jobs, parts, strict=True):
        assert np.array_equal(part, window.of(decode_image(data)))
