"""COCO's compressed run lengths, decoded with nothing but NumPy.

Counts are base-48 text of five bits a character, least significant first; from the fourth count on each is the
difference to the one two places before. Runs alternate between 0 and 1, down the columns. A count that does not fill
the mask is an error here, where the usual C decoder hands out uninitialised memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from segfleet.errors import DataError

_FIRST, _MORE, _SIGN, _BITS = 48, 0x20, 0x10, 5
_MAX_CHARS = 7  # of one count: 35 bits are more than any picture has pixels


def decode_runs(counts: bytes, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Decode one mask, (H, W).

    Args:
        counts: ASCII.
        height: H, pixels.
        width: W, pixels.

    Raises:
        DataError: not such text, or runs that do not fill the mask exactly.
    """
    runs = _runs(np.frombuffer(counts, np.uint8).astype(np.int64) - _FIRST)
    # Each for itself first: the sum of runs that are far too long may come round to the right number.
    if ((runs < 0) | (runs > height * width)).any() or int(runs.sum()) != height * width:
        raise DataError(f"the run lengths do not fill a mask of {width}x{height} pixels")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T


def _runs(chars: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Lengths of the runs, not yet checked for sense."""
    last = np.flatnonzero((chars & _MORE) == 0)  # the last character of each count
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    whole = len(last) > 0 and last[-1] == len(chars) - 1 and int((last - first).max()) < _MAX_CHARS
    if not whole or ((chars < 0) | (chars >= 2 * _MORE)).any():
        raise DataError("the run lengths are not COCO's compressed text")
    shift = _BITS * (np.arange(len(chars)) - np.repeat(first, last - first + 1))
    values = np.add.reduceat((chars & (_MORE - 1)) << shift, first)
    negative = (chars[last] & _SIGN) != 0
    values -= negative * (1 << _BITS * (last - first + 1))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
