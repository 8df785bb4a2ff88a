"""How pictures lie in shards: as they are, or, if asked for, PNG pictures as JPEG.

JPEG of quality 95 without chroma subsampling is lossy, a fourth of the size and several times faster to decode. A
restart marker after every eighth block lets a reader decode a window without what lies left and right of it.
"""

from __future__ import annotations

import io

from PIL import Image

from segfleet.errors import DataError
from segfleet_pipelines.manifest import Images
from segfleet_pipelines.picture import SUFFIX, Header, check_pixels

QUALITY = 95
RESTART_BLOCKS = 8  # blocks of 8 x 8 pixels


def pack_image(data: bytes, header: Header, images: Images) -> tuple[bytes, str]:
    """What a shard stores of a picture, and the suffix of its member. The picture is read to its last byte.

    Raises:
        DataError: damaged or cut short.
    """
    check_pixels(data)
    if images == "jpeg95" and header.format == "PNG":
        return _to_jpeg(data), SUFFIX["JPEG"]
    return data, SUFFIX[header.format]


def _to_jpeg(data: bytes) -> bytes:
    buffer = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = image.convert("L" if image.mode == "L" else "RGB")
    except Exception as error:  # the bytes are a stranger's, and Pillow's parsers raise whatever they stumble over
        raise DataError(f"damaged or cut short ({error})") from error
    # A new picture: the raw one's profile, text and transparency stay behind.
    Image.frombytes(pixels.mode, pixels.size, pixels.tobytes()).save(
        buffer, format="JPEG", quality=QUALITY, subsampling=0, restart_marker_blocks=RESTART_BLOCKS
    )
    return buffer.getvalue()
