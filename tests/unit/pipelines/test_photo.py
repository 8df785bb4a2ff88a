from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from segfleet.errors import DataError
from segfleet_pipelines.photo import FORMATS, read_photo

LIMIT = 10**6


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 10, columns * 6, (rows + columns) * 3], axis=-1).astype(np.uint8)


def saved(path: Path, pixels: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_a_picture_is_turned_as_a_viewer_turns_it(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"turned.{suffix}", gradient(), exif=exif)
    with Image.open(path) as image:
        image.load()
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(read_photo(path, LIMIT), expected)
    assert expected.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_lossless_formats_come_back_as_they_are(suffix: str, tmp_path: Path) -> None:
    pixels = gradient(300, 50)  # more rows than are converted at once
    read = read_photo(saved(tmp_path / f"x.{suffix}", pixels), LIMIT)
    assert np.array_equal(read, pixels)
    assert read.flags.writeable
    assert read.flags.c_contiguous


def test_alpha_is_dropped_and_the_stored_colour_counts(tmp_path: Path) -> None:
    pixels = np.concatenate([gradient(), np.zeros((24, 40, 1), np.uint8)], axis=-1)
    for suffix in ("png", "tif"):
        assert np.array_equal(read_photo(saved(tmp_path / f"x.{suffix}", pixels), LIMIT), gradient())
    grey = np.stack([gradient()[..., 0], np.zeros((24, 40), np.uint8)], axis=-1)
    Image.merge("LA", [Image.fromarray(grey[..., 0]), Image.fromarray(grey[..., 1])]).save(tmp_path / "la.png")
    assert np.array_equal(read_photo(tmp_path / "la.png", LIMIT), np.repeat(grey[..., :1], 3, axis=2))


def test_palettes_become_their_colours_also_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    image.putpalette([value for index in range(256) for value in (index * 9 % 256, index * 5 % 256, index)])
    expected = [[9 * index, 5 * index, index] for index in range(6)]
    for name, options in (("x.png", {}), ("t.png", {"transparency": bytes([0, 128, 255, 3])}), ("x.gif", {})):
        image.save(tmp_path / name, **options)
        assert read_photo(tmp_path / name, LIMIT).reshape(-1, 3).tolist() == expected, name


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_of_sixteen_bits_the_upper_eight_count(suffix: str, tmp_path: Path) -> None:
    deep = (np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 68).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
    read = read_photo(tmp_path / f"deep.{suffix}", LIMIT)
    assert np.array_equal(read, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_sixteen_bits_of_three_channels(tmp_path: Path) -> None:
    import cv2

    deep = gradient().astype(np.uint16) * 256 + 77
    for suffix in ("png", "tif"):
        cv2.imwrite(str(tmp_path / f"deep.{suffix}"), deep[..., ::-1])
    assert np.array_equal(read_photo(tmp_path / "deep.png", LIMIT), gradient())
    assert np.array_equal(read_photo(tmp_path / "deep.tif", LIMIT), gradient())


def test_grey_and_cmyk_and_bits_become_rgb(tmp_path: Path) -> None:
    grey = read_photo(saved(tmp_path / "grey.jpg", gradient(), "L"), LIMIT)
    assert (grey[..., 0] == grey[..., 2]).all()
    cmyk = read_photo(saved(tmp_path / "cmyk.jpg", gradient(), "CMYK", quality=95), LIMIT)
    assert np.abs(cmyk.astype(int) - gradient()).mean() < 4
    bits = read_photo(saved(tmp_path / "bits.png", gradient(), "1"), LIMIT)
    assert set(np.unique(bits)) == {0, 255}


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "webp", "png"):
        frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:])
        read = read_photo(tmp_path / f"x.{suffix}", LIMIT)
        assert read[0, 0, 0] > 200, suffix
        assert read[0, 0, 2] < 50, suffix


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", gradient())
    path.write_bytes(path.read_bytes()[:60])  # nothing left to decode
    with pytest.raises(DataError, match=r"40x24 pixels are more than the limit of 0\.0005 megapixels.*--max"):
        read_photo(path, 500)
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(DataError, match=r"cut short|damaged"):
        read_photo(path, LIMIT)
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_limit_above_that_of_datasets_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "x.png", gradient())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_photo(path, LIMIT).shape == (24, 40, 3)


def test_what_is_no_picture_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(DataError, match=r"no picture of a known format.*WEBP"):
        read_photo(tmp_path / "text.jpg", LIMIT)
    with pytest.raises(DataError, match="No such file"):
        read_photo(tmp_path / "missing.jpg", LIMIT)
    with pytest.raises(DataError, match=r"[Ii]s a directory"):
        read_photo(tmp_path, LIMIT)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match="mode F have no stated range"):
        read_photo(tmp_path / "float.tif", LIMIT)
    data = saved(tmp_path / "cut.jpg", gradient()).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cut short"):
        read_photo(tmp_path / "cut.jpg", LIMIT)


def test_every_format_can_be_read_here() -> None:
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)
