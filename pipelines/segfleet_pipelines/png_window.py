"""A window of a PNG, decoded only as far as the window needs.

The rows are inflated down to the window's last one by a faster inflater than PNG decoders have. A row that does not
look at the one above it is a place to begin undoing the filters. What is left goes to a PNG decoder without
compression: as PNGs put together here, with the rows in stored blocks. It gets them in bands: several buffers of a
whole picture would come from the kernel and go back to it each time, which costs as much as undoing the filters.

Source: Portable Network Graphics, third edition (W3C, 2025), sections 7.2, 9 and 11.2.1; RFC 1951, 3.2.4 (stored
blocks).
"""

from __future__ import annotations

import struct

import numpy as np
import pyspng
from isal import isal_zlib

from segfleet_pipelines.picture import Pixels, Window

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CHANNELS = 3
_HEADER = b"\0\0\0\rIHDR"
_PLAIN_RGB = bytes((8, 2, 0, 0, 0))  # depth, colour type, compression, filter method, interlace
_SUB = 1  # filters up to this one use the own row alone
_STORED_MAX = 65_535
_BAND = 2**18  # bytes
_NO_SUM = bytes(4)


def decode(data: bytes, window: Window, height: int, width: int) -> Pixels | None:
    """Decode a window of an 8-bit RGB PNG of the given size.

    Returns:
        RGB, (window.height, window.width, 3); None if the file is damaged, unusual or of another size.
    """
    if data[8:29] != _HEADER + struct.pack(">II", width, height) + _PLAIN_RGB:
        return None
    stride = 1 + width * _CHANNELS
    try:
        content = isal_zlib.decompressobj().decompress(_compressed(data), window.bottom * stride)
        rows = np.frombuffer(content, np.uint8).reshape(window.bottom, stride)
        first = int(np.flatnonzero(rows[: window.top + 1, 0] <= _SUB).max(initial=0))
        # What lies right of the window changes nothing in it.
        return _unfilter(rows[first:, : 1 + window.right * _CHANNELS], window.height, window.left)
    except (isal_zlib.error, ValueError, RuntimeError):  # type: ignore[misc]  # isal's stub has no class there
        return None


def _unfilter(rows: Pixels, height: int, left: int) -> Pixels:
    """Pixels (height, W - left, 3) of the last rows of (H, 1 + 3 W) filtered ones."""
    width = rows.shape[1] // _CHANNELS
    pixels = np.empty((height, width - left, _CHANNELS), np.uint8)
    step = max(1, _BAND // rows.shape[1])
    above = rows[:0]
    for begin in range(0, len(rows), step):
        band = rows[begin : begin + step]
        decoded = pyspng.load(_stored(np.concatenate((above, band))), "RGB")[len(above) :]
        place = begin - (len(rows) - height)
        wanted = decoded[max(0, -place) :, left:]
        pixels[max(0, place) : max(0, place) + len(wanted)] = wanted
        # The filters of the next band look at this row; as a row without filter it can lie on top of them.
        above = np.zeros((1, rows.shape[1]), np.uint8)
        above[0, 1:] = decoded[-1].ravel()
    return pixels


def _compressed(data: bytes) -> bytes:
    """The deflated rows.

    Raises:
        ValueError: cut short, or a chunk does not fit its checksum.
    """
    view, parts, place = memoryview(data), [], len(SIGNATURE)
    while place + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + size
        if end > len(data) or isal_zlib.crc32(view[place + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            break
        if kind == b"IDAT":
            parts.append(view[place + 8 : end - 4])
        elif kind == b"IEND":
            return b"".join(parts)
        place = end
    raise ValueError("the chunks are damaged")


def _stored(rows: Pixels) -> bytes:
    """A PNG of filtered rows (H, 1 + 3 W), not compressed; its checksums are 0, which pyspng does not look at."""
    content = rows.data.cast("B")
    blocks: list[bytes | memoryview] = [b"\x78\x01"]
    for begin in range(0, len(content), _STORED_MAX):
        block = content[begin : begin + _STORED_MAX]
        is_last = begin + _STORED_MAX >= len(content)
        blocks += (struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block)
    blocks.append(_NO_SUM)
    height, stride = rows.shape
    header = struct.pack(">II", (stride - 1) // _CHANNELS, height) + _PLAIN_RGB
    size = struct.pack(">I", sum(map(len, blocks)))
    return b"".join((SIGNATURE, _HEADER, header, _NO_SUM, size, b"IDAT", *blocks, _NO_SUM, bytes(4), b"IEND", _NO_SUM))
