"""Damage to bytes at random places, the same for the same generator."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np

Surgeon = Callable[[np.random.Generator, bytes], bytes]


def _span(rng: np.random.Generator, size: int, longest: int = 600) -> tuple[int, int]:
    """Where a stretch begins and ends; at least one byte."""
    start = int(rng.integers(0, size))
    return start, min(size, start + int(rng.integers(1, longest + 1)))


def flip(rng: np.random.Generator, data: bytes) -> bytes:
    """Flip one bit."""
    place = int(rng.integers(0, len(data)))
    return data[:place] + bytes([data[place] ^ (1 << int(rng.integers(0, 8)))]) + data[place + 1 :]


def cut(rng: np.random.Generator, data: bytes) -> bytes:
    """Lose the end."""
    return data[: int(rng.integers(0, len(data)))]


def lose(rng: np.random.Generator, data: bytes) -> bytes:
    """Lose a stretch in the middle."""
    start, end = _span(rng, len(data))
    return data[:start] + data[end:]


def swap(rng: np.random.Generator, data: bytes) -> bytes:
    """Exchange two stretches of one length."""
    size = int(rng.integers(1, max(2, min(600, len(data) // 3))))
    first, second = sorted(int(place) for place in rng.integers(0, len(data) - size + 1, 2))
    second = max(second, min(first + size, len(data) - size))
    return (
        data[:first]
        + data[second : second + size]
        + data[first + size : second]
        + data[first : first + size]
        + data[second + size :]
    )


def duplicate(rng: np.random.Generator, data: bytes) -> bytes:
    """Repeat a stretch."""
    start, end = _span(rng, len(data))
    return data[:end] + data[start:end] + data[end:]


def zero(rng: np.random.Generator, data: bytes) -> bytes:
    """Turn a stretch into zeros."""
    start, end = _span(rng, len(data))
    return data[:start] + bytes(end - start) + data[end:]


def insert(rng: np.random.Generator, data: bytes) -> bytes:
    """Put random bytes in between."""
    start, end = _span(rng, len(data))
    return data[:start] + rng.bytes(end - start) + data[start:]


def overwrite(rng: np.random.Generator, data: bytes) -> bytes:
    """Put random bytes over a stretch."""
    start, end = _span(rng, len(data), 40)
    return data[:start] + rng.bytes(end - start) + data[end:]


SURGEONS: dict[str, Surgeon] = {
    surgeon.__name__: surgeon for surgeon in (flip, cut, lose, swap, duplicate, zero, insert, overwrite)
}


def damaged(rng: np.random.Generator, data: bytes) -> tuple[str, bytes]:
    """The name of a kind of damage, and bytes with it that are not the same as before."""
    while True:
        name = str(rng.choice(list(SURGEONS)))
        changed = SURGEONS[name](rng, data)
        if changed != data:
            return name, changed


def with_png_sums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what is in them now, as a hostile writer would give them."""
    place, parts = 8, [data[:8]]
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        content = data[place + 4 : place + 8 + size]
        parts += [data[place : place + 4], content, struct.pack(">I", zlib.crc32(content))]
        place += 12 + size
    return b"".join(parts)
