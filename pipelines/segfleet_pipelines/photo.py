"""Pictures as people have them, not as a prepared dataset does: any usual format, turned the way they are looked at."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from segfleet.errors import DataError
from segfleet_pipelines.picture import Pixels

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif"})

_EXIF_ORIENTATION = 0x0112
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
# Modes that Pillow would clip or cannot turn into RGB: 32-bit numbers without a stated range, and CIE Lab.
_WITHOUT_COLOURS = ("I", "F", "LAB")
# Rows converted at once: beside Pillow's own copy, the whole picture exists once.
_ROWS_PER_BAND = 256


def read_photo(path: Path, max_pixels: int) -> Pixels:
    """Read a picture as RGB, the way it is looked at.

    EXIF orientation is applied. Alpha is dropped, as in training: the colours are those stored beneath it. Of 16 bits a
    channel the upper 8 count; grey is repeated, palettes and CMYK are converted, of an animation the first frame is
    taken.

    Args:
        path: Of one of FORMATS, whatever its name.
        max_pixels: Refuse more, before any pixel is decoded: a small file can hold a huge picture.

    Returns:
        (H, W, 3).

    Raises:
        DataError: missing, unreadable, damaged or too large; says why, not which.
    """
    with unbounded():
        try:
            with Image.open(path, formats=FORMATS) as image:
                _check(image, max_pixels)
                image.load()
                orientation = _orientation(image)
                pixels = _to_rgb(image)
        except (DataError, KeyboardInterrupt, MemoryError):
            raise
        except UnidentifiedImageError as error:
            raise DataError(f"no picture of a known format ({', '.join(FORMATS)})") from error
        except OSError as error:
            raise DataError(error.strerror or f"damaged or cut short ({error})") from error
        except Exception as error:  # the bytes are a stranger's, and Pillow's parsers raise whatever they stumble over
            raise DataError(f"damaged ({error})") from error
    return _turned(pixels, orientation)


@contextmanager
def unbounded() -> Iterator[None]:
    """Pillow without its own bound on pixels, which is one for all its users, and its remarks on odd metadata."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise DataError(
            f"{image.width}x{image.height} pixels are more than the limit of {max_pixels / 1e6:g} megapixels; "
            "make it smaller, or raise --max-megapixels if you trust the file"
        )
    if image.mode in _WITHOUT_COLOURS:
        raise DataError(f"pixels of mode {image.mode} have no stated range of colours; save it with 8 or 16 bits")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # whatever is wrong with it: no viewer turns a picture by a tag that cannot be read
        return 1


def _to_rgb(image: Image.Image) -> Pixels:
    # A transparent colour of a palette or of grey; it would only make Pillow complain.
    image.info.pop("transparency", None)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _ROWS_PER_BAND):
        bottom = min(top + _ROWS_PER_BAND, image.height)
        band = image.crop((0, top, image.width, bottom))
        if image.mode in _SIXTEEN_BITS:
            pixels[top:bottom] = (np.asarray(band) >> 8).astype(np.uint8)[..., None]
        else:
            pixels[top:bottom] = np.asarray(band.convert("RGB"))
    return pixels


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels the way a viewer shows them, by EXIF orientation 1..8; what is out of range turns nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
