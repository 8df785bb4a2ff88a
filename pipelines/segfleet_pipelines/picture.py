"""Pictures and masks as bytes and as arrays: strict headers, decoding, palettes, overlays.

Only JPEG and PNG are ever opened, and the size is read and bounded before any pixel is decoded.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segfleet.errors import DataError
from segfleet_pipelines.png_check import check_png

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Palette = Sequence[tuple[int, int, int]]

MAX_PIXELS = 50_000_000
IMAGE_MODES = ("RGB", "L", "RGBA")
MASK_MODES = ("P", "L")
SUFFIX = {"JPEG": "jpg", "PNG": "png"}

Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# Parallelism comes from processes. OpenCV's own threads would crowd them, and do not survive a fork.
cv2.setNumThreads(0)

_PIXELS_PER_BAND = 2**20
_EXIF_ORIENTATION = 0x0112
_PNG_EXIF_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


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


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a picture, pixels; within it, and not empty.

    Attributes:
        top: First row.
        left: First column.
        height: Rows.
        width: Columns.
    """

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """First row below."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """First column to the right."""
        return self.left + self.width

    def of(self, pixels: Pixels) -> Pixels:
        """This part of (H, W) or (H, W, 3) pixels, as a view."""
        return pixels[self.top : self.bottom, self.left : self.right]


def read_header(data: bytes) -> Header:
    """Read a picture's header.

    Raises:
        DataError: neither JPEG nor PNG, or more than MAX_PIXELS pixels.
    """
    with _opened(data) as image:
        return Header(str(image.format), image.mode, image.height, image.width, _orientation(image, data))


def check_pixels(data: bytes) -> None:
    """Read a picture's pixels to the last byte, at the least cost that still finds what a whole decoding would.

    Raises:
        DataError: truncated or damaged.
    """
    with _opened(data) as image:
        if image.format == "PNG" and check_png(data):
            return
        # Of a JPEG every code is read, but only the brightness of each 8 x 8 block is computed. No pixel can be wrong
        # where all codes are right.
        image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
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


def encode_mask(mask: Labels, palette: Palette, text: Mapping[str, str] | None = None) -> bytes:
    """Encode labels (H, W) as PNG: 8-bit ones with the palette, labels beyond it show black; 16-bit ones as grey.

    Args:
        mask: Labels, 8 or 16 bits wide.
        palette: One colour a class.
        text: What the file says of itself, keyword to text.
    """
    image = Image.fromarray(mask if mask.itemsize == 1 else mask.astype(np.uint16, copy=False))
    if mask.itemsize == 1:
        image.putpalette(_table(palette)[:256].tobytes())
    info = PngInfo()
    for keyword, words in (text or {}).items():
        info.add_text(keyword, words)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info, **({"bits": 8} if mask.itemsize == 1 else {}))
    return buffer.getvalue()


def colorize(mask: Labels, palette: Palette) -> Pixels:
    """Colours of a label map, (H, W) -> (H, W, 3) RGB; labels beyond the palette are black."""
    table = _table(palette)
    colors: Pixels = table[np.minimum(mask, len(table) - 1)]
    return colors


def overlay(image: Pixels, mask: Labels, palette: Palette, alpha: float = 0.55) -> Pixels:
    """Blend a picture (H, W, 3) with its label map's colours; labels beyond the palette leave it as it is.

    Args:
        image: RGB.
        mask: Labels, (H, W).
        palette: One colour a class.
        alpha: Share of the colour, 0..1.
    """
    blended = np.empty_like(image)
    # In bands: as floats, a large picture would take several times its memory.
    step = max(1, _PIXELS_PER_BAND // max(1, image.shape[1]))
    for top in range(0, len(image), step):
        rows = slice(top, top + step)
        tint = (alpha * (mask[rows] < len(palette))).astype(np.float32)[..., None]
        blended[rows] = np.rint(image[rows] * (1 - tint) + colorize(mask[rows], palette) * tint)
    return blended


def _table(palette: Palette) -> Pixels:
    table = np.zeros((max(256, len(palette) + 1), 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    return table


def _orientation(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG" and not any(mark in data for mark in _PNG_EXIF_MARKS):
        # Pillow would decode all of the picture to see whether an EXIF chunk comes after the pixels.
        return 1
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # whatever is wrong with it: no viewer turns a picture by a tag that cannot be read
        return 1


def _opened(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(SUFFIX))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large() from error
    except Exception as error:  # the bytes are a stranger's, and Pillow's parsers raise whatever they stumble over
        raise DataError("neither a readable JPEG nor a readable PNG") from error
    # Said here once more: up to twice the limit Pillow only warns, and warnings can be turned off by anyone.
    if image.width * image.height > MAX_PIXELS:
        raise _too_large()
    return image


def _too_large() -> DataError:
    return DataError(f"more than {MAX_PIXELS:,} pixels; make the picture smaller")


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:  # as above
        raise DataError(f"damaged or cut short ({error})") from error
