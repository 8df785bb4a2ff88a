"""A window of a JPEG, decoded without the rest of the picture where restart markers allow it.

At a restart marker the entropy coding begins anew, so the blocks between two markers can be decoded alone. Of a picture
without chroma subsampling, where no block needs its neighbours, a smaller JPEG is put together from just the intervals
that the window touches; the decoder sees an ordinary file, and its pixels are those of the full decode.

Source: ITU-T T.81, B.1.1 (markers), B.2.2 (frame header), E.1.4 (restart intervals).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg

from segfleet_pipelines.picture import Pixels, Window

SIGNATURE = b"\xff\xd8"

_BLOCK = 8
_MARK, _BASELINE, _EXTENDED, _SCAN, _RESTART_INTERVAL, _END, _RESTART = 0xFF, 0xC0, 0xC1, 0xDA, 0xDD, 0xD9, 0xD0
_SPACES = ("YCbCr", "Gray", "RGB")


@dataclass(frozen=True, slots=True)
class _Intervals:
    """The restart intervals of a JPEG, numbered row by row; none crosses a row's end.

    Attributes:
        frame: Offset of the frame header's height field.
        start: Offset of interval 0, which is the length of all headers.
        ends: Offset of the marker behind each interval, (N,).
        per_row: Intervals in a row of blocks.
        width: Of an interval, pixels.
    """

    frame: int
    start: int
    ends: npt.NDArray[np.intp]
    per_row: int
    width: int


def decode(data: bytes, window: Window, height: int, width: int) -> Pixels | None:
    """Decode a window of a JPEG of the given size.

    Returns:
        RGB, (window.height, window.width, 3), possibly a view; None if the file is damaged, unusual or of another size.
    """
    try:
        *size, space, _ = simplejpeg.decode_jpeg_header(data)
        if size != [height, width] or space not in _SPACES:
            return None
        intervals = _find_intervals(data, height, width)
        if intervals is not None:
            data, window = _cut(data, intervals, window, height, width)
        return window.of(simplejpeg.decode_jpeg(data))
    except ValueError:
        return None


def _find_intervals(data: bytes, height: int, width: int) -> _Intervals | None:
    """The intervals of a picture whose blocks stand alone; None if there are none or they cross the ends of rows."""
    headers = _read_headers(data)
    row_blocks = -(-width // _BLOCK)
    if headers is None or row_blocks % headers[1]:
        return None
    frame, interval, start = headers
    per_row = row_blocks // interval
    count = per_row * -(-height // _BLOCK)
    scan = np.frombuffer(data, np.uint8, offset=start)
    ends = np.flatnonzero(scan[:-1] == _MARK)
    kinds = scan[ends + 1]
    is_marker = kinds != 0  # an FF among the codes is followed by 0
    ends, kinds = ends[is_marker], kinds[is_marker]
    # With subsampled chroma, whose blocks need their neighbours, the codes come in larger units and fewer intervals;
    # with several scans, other markers stand between them.
    if not np.array_equal(kinds, _markers(count)):
        return None
    return _Intervals(frame, start, ends + start, per_row, interval * _BLOCK)


def _read_headers(data: bytes) -> tuple[int, int, int] | None:
    """Offset of the frame's height, restart interval in blocks, and offset of the codes.

    None if there are no restart intervals, or the frame is progressive.
    """
    place, frame, interval = len(SIGNATURE), 0, 0
    while place + 4 <= len(data):
        mark, kind, size = struct.unpack_from(">BBH", data, place)
        if mark != _MARK or place + 2 + size > len(data):
            return None
        if kind in (_BASELINE, _EXTENDED):
            frame = place + 5
        elif kind == _RESTART_INTERVAL:
            (interval,) = struct.unpack_from(">H", data, place + 4)
        elif kind == _SCAN:
            return (frame, interval, place + 2 + size) if frame and interval else None
        place += 2 + size
    return None


def _cut(data: bytes, intervals: _Intervals, window: Window, height: int, width: int) -> tuple[bytes, Window]:
    """A JPEG of the intervals that a window touches, and the window in it."""
    first_row, last_row = window.top // _BLOCK, (window.bottom - 1) // _BLOCK
    first, last = window.left // intervals.width, (window.right - 1) // intervals.width
    top, left = first_row * _BLOCK, first * intervals.width
    size = min((last_row + 1) * _BLOCK, height) - top, min((last + 1) * intervals.width, width) - left
    numbers = np.arange(first_row, last_row + 1)[:, None] * intervals.per_row + np.arange(first, last + 1)
    # Each interval with the marker behind it; neighbours in a row of blocks lie together in the file.
    ends = intervals.ends + 2
    begins = np.concatenate(([intervals.start], ends[:-1]))
    parts = [data[a:b] for a, b in zip(begins[numbers[:, 0]].tolist(), ends[numbers[:, -1]].tolist(), strict=True)]
    head = data[: intervals.frame] + struct.pack(">HH", *size) + data[intervals.frame + 4 : intervals.start]
    part = bytearray().join((head, *parts))
    markers = np.cumsum((ends - begins)[numbers].ravel()) + (len(head) - 1)
    np.frombuffer(part, np.uint8)[markers] = _markers(markers.size)
    return bytes(part), Window(window.top - top, window.left - left, window.height, window.width)


def _markers(count: int) -> Pixels:
    """The marker behind each of `count` intervals: eight restart markers in turn, and the end behind the last."""
    kinds = (np.arange(count) % 8 + _RESTART).astype(np.uint8)
    kinds[-1] = _END
    return kinds
