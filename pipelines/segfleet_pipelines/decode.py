"""One window of an encoded picture, at the cost of the window where the format allows it."""

from __future__ import annotations

import numpy as np

from segfleet.errors import DataError
from segfleet_pipelines import jpeg_window, png_window
from segfleet_pipelines.picture import MAX_PIXELS, Pixels, Window, decode_image

# Pictures come and go by the megabyte. glibc takes blocks beyond 128 kB from the kernel and gives them back when they
# are freed, unless larger ones have been freed before; new pages for each picture would be a tenth of a sample's time.
# So one block of the largest size that it will ever keep is taken here, and freed untouched. See mallopt(3).
np.empty(2**25 - 2**16, np.uint8)


def decode_window(data: bytes, window: Window, size: tuple[int, int]) -> Pixels:
    """Decode a part of a picture; equal to that part of `decode_image`.

    Args:
        data: JPEG or PNG.
        window: The part; everything is a part too.
        size: Height and width that the picture should have, pixels.

    Returns:
        RGB, (window.height, window.width, 3), possibly a view.

    Raises:
        DataError: unreadable, too many pixels, or of another size.
    """
    height, width = size
    pixels = None
    if height * width <= MAX_PIXELS:
        if data.startswith(jpeg_window.SIGNATURE):
            pixels = jpeg_window.decode(data, window, height, width)
        elif data.startswith(png_window.SIGNATURE):
            pixels = png_window.decode(data, window, height, width)
    if pixels is None:
        # Unusual layouts, and what is wrong: the general decoder says it.
        image = decode_image(data)
        if image.shape[:2] != size:
            raise DataError(f"the picture has {image.shape[1]}x{image.shape[0]} pixels, not {width}x{height}")
        pixels = window.of(image)
    return pixels
