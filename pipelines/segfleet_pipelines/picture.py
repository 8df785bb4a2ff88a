"""Pictures and masks as bytes and as arrays: strict headers, decoding, palettes, overlays.

Only JPEG and PNG are ever opened, and the size is read and bounded before any pixel is decoded.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segfleet.errors import DataError

Pixels = npt.NDArray[np.uint8]
Palette = Sequence[tuple[int, int, int]]

MAX_PIXELS = 50_000_000
IMAGE_MODES = ("RGB", "L", "RGBA")
MASK_MODES = ("P", "L")
SUFFIX = {"JPEG": "jpg", "PNG": "png"}

Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# Parallelism comes from processes. OpenCV's own threads would crowd them, and do not survive a fork.
cv2.setNumThreads(0)

_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture says about itself before its pixels are decoded.

    Attributes:
        format: JPEG or PNG.
        mode: Pillow's name of the pixel layout.
        height: Rows as stored, pixels.
        width: Columns as stored, pixels.
        orientation: EXIF orientation, 1 (as stored) to 8.
    """

    format: str
    mode: str
    height: int
    width: int
    orientation: int


def read_header(data: bytes) -> Header:
    """Read a picture's header.

    Raises:
        DataError: neither JPEG nor PNG, or more than MAX_PIXELS pixels.
    """
    with _opened(data) as image:
        orientation = int(image.getexif().get(_EXIF_ORIENTATION, 1))
        return Header(str(image.format), image.mode, image.height, image.width, orientation)


def check_pixels(data: bytes) -> None:
    """Decode a picture to the last byte with a decoder that forgives nothing.

    Raises:
        DataError: truncated or damaged.
    """
    with _opened(data) as image:
        _load(image)


def decode_image(data: bytes) -> Pixels:
    """Decode a picture to RGB, (H, W, 3); grey is repeated, alpha dropped, EXIF orientation not applied.

    Raises:
        DataError: unreadable, or too many pixels.
    """
    _opened(data).close()
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image: Pixels | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise DataError("the picture cannot be decoded")
    return image


def decode_mask(data: bytes) -> Pixels:
    """Decode a mask to its labels, (H, W); of a palette picture these are the indices, not the colours.

    Raises:
        DataError: unreadable, too many pixels, or not an 8-bit index or grey picture.
    """
    with _opened(data) as image:
        if image.format != "PNG" or image.mode not in MASK_MODES:
            raise DataError(
                f"the mask is {image.format} of mode {image.mode}; save it as PNG with one 8-bit label a pixel"
            )
        _load(image)
        return np.array(image)


def encode_mask(mask: Pixels, palette: Palette) -> bytes:
    """Encode labels (H, W) as an 8-bit palette PNG; labels beyond the palette show black."""
    image = Image.fromarray(mask)
    image.putpalette(_table(palette).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", bits=8)
    return buffer.getvalue()


def colorize(mask: Pixels, palette: Palette) -> Pixels:
    """Colours of a label map, (H, W) -> (H, W, 3) RGB; labels beyond the palette are black."""
    colors: Pixels = _table(palette)[mask]
    return colors


def overlay(image: Pixels, mask: Pixels, palette: Palette, alpha: float = 0.55) -> Pixels:
    """Blend a picture (H, W, 3) with its label map's colours; labels beyond the palette leave it as it is.

    Args:
        image: RGB.
        mask: Labels, (H, W).
        palette: One colour a class.
        alpha: Share of the colour, 0..1.
    """
    tint = (alpha * (mask < len(palette))).astype(np.float32)[..., None]
    blended = image * (1 - tint) + colorize(mask, palette) * tint
    return np.rint(blended).astype(np.uint8)


def _table(palette: Palette) -> Pixels:
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    return table


def _opened(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=tuple(SUFFIX))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"more than {MAX_PIXELS:,} pixels; make the picture smaller") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError("neither a readable JPEG nor a readable PNG") from error


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, IndexError) as error:
        raise DataError(f"damaged or cut short ({error})") from error
