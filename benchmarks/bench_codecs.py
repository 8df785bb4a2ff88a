"""Codecs of masks and pictures on real files: size, decoding and encoding time (docs/decisions/0005-codecs.md).

Every mask codec is lossless and is checked to be. Times are medians over rounds of CPU time on one thread.
Run: python benchmarks/bench_codecs.py --photos DIR [DIR ...]

DIR: pictures (.jpg, .png) and 8-bit masks (.png) of equal stems anywhere below it.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from segfleet_pipelines.image_codec import pack_image
from segfleet_pipelines.mask_codec import MASK_MEMBER, pack_mask, unpack_mask
from segfleet_pipelines.picture import MASK_MODES, Pixels, decode_image, decode_mask, read_header

ROUNDS = 5
LIMIT = 60  # files of a kind


@dataclass(frozen=True, slots=True)
class Codec:
    """A way to store an array."""

    name: str
    encode: Callable[[Pixels], bytes]
    decode: Callable[[bytes, tuple[int, int]], Pixels]


def main() -> None:
    """Print a table for each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    for folder in parser.parse_args().photos:
        masks, pictures = find(folder)
        print(f"{folder}: {len(masks)} masks, {len(pictures)} pictures")
        for line in [*mask_lines(masks), "", *picture_lines(pictures)]:
            print(line)
        print()


def find(folder: Path) -> tuple[list[bytes], list[bytes]]:
    """Masks and pictures, as many as are needed."""
    kinds: dict[bool, list[bytes]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            data = path.read_bytes()
            is_mask = path.suffix.lower() == ".png" and read_header(data).mode in MASK_MODES
            kinds[is_mask].append(data)
    if not kinds[True] or not kinds[False]:
        raise SystemExit(f"error: {folder} must hold pictures and 8-bit masks")
    return kinds[True][:LIMIT], kinds[False][:LIMIT]


def mask_codecs() -> list[Codec]:
    """What could hold a mask."""

    def plain_png(filters: int) -> Callable[[Pixels], bytes]:
        options = [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_FILTER, filters]
        return lambda mask: cv2.imencode(".png", mask, options)[1].tobytes()

    def zstd(level: int) -> Codec:
        codec = pa.Codec("zstd", level)
        return Codec(
            f"zstd {level}",
            lambda mask: codec.compress(mask.tobytes(), asbytes=True),
            lambda data, shape: np.frombuffer(
                codec.decompress(data, decompressed_size=shape[0] * shape[1], asbytes=True), np.uint8
            ).reshape(shape),
        )

    return [
        Codec("PNG, all filters", plain_png(cv2.IMWRITE_PNG_ALL_FILTERS), decode_grey),
        Codec("PNG, no filter", plain_png(cv2.IMWRITE_PNG_FILTER_NONE), decode_grey),
        *(zstd(level) for level in (1, 3, 6, 9, 15)),
        Codec("npy in zstd, as stored", pack_mask, lambda data, shape: unpack_mask(data, MASK_MEMBER, *shape)),
    ]


def decode_grey(data: bytes, _shape: tuple[int, int]) -> Pixels:
    """The fastest decoder for PNG masks that is at hand."""
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), np.uint8)


def mask_lines(found: list[bytes]) -> Iterator[str]:
    """A line for each mask codec; the first is the raw files as they came."""
    masks = [decode_mask(data) for data in found]
    yield f"{'mask':26} {'bytes':>9} {'decode us':>10} {'encode us':>10}"
    size, us = statistics.mean(map(len, found)), cpu_us(decode_mask, found)
    yield f"{'PNG, as it came':26} {size:9.0f} {us:10.0f} {'':>10}"
    for codec in mask_codecs():
        encoded = [codec.encode(mask) for mask in masks]
        for mask, data in zip(masks, encoded, strict=True):
            assert np.array_equal(codec.decode(data, mask.shape), mask), codec.name
        shapes = [mask.shape for mask in masks]
        decode, encode = cpu_us(codec.decode, encoded, shapes), cpu_us(codec.encode, masks)
        yield f"{codec.name:26} {statistics.mean(map(len, encoded)):9.0f} {decode:10.0f} {encode:10.0f}"


def picture_lines(found: list[bytes]) -> Iterator[str]:
    """A line for each picture codec, with the error that it makes."""
    pixels = [decode_image(data) for data in found]
    kind = read_header(found[0]).format
    yield f"{'picture':26} {'bytes':>9} {'decode us':>10} {'encode us':>10} {'PSNR dB':>8}"
    ways: dict[str, Callable[[bytes, Pixels], bytes]] = {f"{kind}, as it came": lambda data, _image: data}
    if kind == "PNG":
        ways["jpeg95 (4:4:4, restarts)"] = lambda data, _image: pack_image(data, read_header(data), "jpeg95")[0]
    ways |= {
        "JPEG 95, 4:4:4": lambda _data, image: jpeg(image, 95, 0),
        "JPEG 90, 4:2:0": lambda _data, image: jpeg(image, 90, 2),
        "PNG, level 1": lambda _data, image: cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes(),
    }
    for name, encode in ways.items():
        encoded = [encode(data, image) for data, image in zip(found, pixels, strict=True)]
        decode_us, encode_us = cpu_us(decode_image, encoded), cpu_us(encode, found, pixels)
        lossless = name.startswith("PNG") or name.endswith("came")
        error = "" if lossless else f"{statistics.mean(map(psnr_db, pixels, map(decode_image, encoded))):8.1f}"
        yield f"{name:26} {statistics.mean(map(len, encoded)):9.0f} {decode_us:10.0f} {encode_us:10.0f} {error:>8}"


def jpeg(image: Pixels, quality: int, subsampling: int) -> bytes:
    """A JPEG by Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def psnr_db(image: Pixels, other: Pixels) -> float:
    """Peak signal to noise ratio."""
    return float(10 * np.log10(255**2 / np.mean((image.astype(np.float32) - other) ** 2)))


def cpu_us(function: Callable[..., object], *columns: Sequence[object]) -> float:
    """Median CPU time of one call with an item of each column."""
    figures = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        for items in zip(*columns, strict=True):
            function(*items)
        figures.append(time.process_time() - begin)
    return 1e6 * statistics.median(figures) / len(columns[0])


if __name__ == "__main__":
    main()
