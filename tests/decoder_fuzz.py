"""Feed damaged bytes to everything that reads a stranger's bytes: only a DataError may come out."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from byte_surgery import damaged, with_png_sums
from segfleet.errors import DataError
from segfleet_pipelines.datasets.class_table import read_classes
from segfleet_pipelines.decode import decode_window
from segfleet_pipelines.manifest import FileInfo, Manifest, ShardInfo, SplitInfo
from segfleet_pipelines.mask_codec import pack_mask, unpack_mask
from segfleet_pipelines.pairing import pair_members
from segfleet_pipelines.picture import Window, check_pixels, decode_image, decode_mask, read_header
from segfleet_pipelines.reader import INDEX_SCHEMA, SampleIndex, read_table
from segfleet_pipelines.tar_walk import walk_tar

HEIGHT, WIDTH = 24, 31
_RNG = np.random.default_rng(0)
_COLOR = Image.fromarray(_RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
_LABELS = _RNG.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8)
_CLASSES = (
    b"names: [sky, road, tree]\ncolors: [[0, 0, 255], [9, 9, 9], [0, 99, 0]]\nignore_index: 255\nlabel_map: {0: 0}\n"
)


def _encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=fmt, **options)
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.jpg", "a.png", "é" * 60 + ".jpg", "b.pkl"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 600, 1.5
            tar.addfile(info, io.BytesIO(bytes(600)))
    return buffer.getvalue()


def _rows() -> list[dict[str, object]]:
    rows = []
    for i in range(6):
        row: dict[str, object] = {"key": f"k{i}", "split": "train", "shard": "train-000000.tar"}
        for part in ("image", "mask"):
            row |= {f"{part}_member": "x", f"{part}_offset": 512, f"{part}_bytes": 9, f"{part}_crc32": 7}
        rows.append(row | {"height": 3, "width": 4, "class_pixels": [6, 6, 0]})
    return rows


def _index(compression: str) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(_rows(), schema=INDEX_SCHEMA), buffer, compression=compression)
    return bytes(buffer.getvalue())


def _manifest(index: bytes = b"") -> Manifest:
    info = FileInfo("samples.parquet", hashlib.sha256(index).hexdigest(), len(index))
    splits = {"train": SplitInfo(6, (ShardInfo("train-000000.tar", "0" * 64, 10240, 6),))}
    return Manifest("toy", ("sky", "road", "tree"), ((0, 0, 1), (2, 2, 2), (3, 4, 5)), 255, splits, info)


_EXIF = Image.Exif()
_EXIF[0x0112] = 1
_EXIF[0x010E] = "a description"
_PALETTE = Image.fromarray(_LABELS)
_PALETTE.putpalette(list(range(9)))
PICTURES = {
    "jpeg": _encoded(_COLOR, "JPEG", exif=_EXIF),
    "progressive jpeg": _encoded(_COLOR, "JPEG", progressive=True),
    "grey jpeg": _encoded(_COLOR.convert("L"), "JPEG"),
    "jpeg with restarts": _encoded(_COLOR, "JPEG", subsampling=0, restart_marker_blocks=2),
    "png": _encoded(_COLOR, "PNG", exif=_EXIF),
    "palette png": _encoded(_PALETTE, "PNG"),
    "grey png": _encoded(Image.fromarray(_LABELS), "PNG"),
    "alpha png": _encoded(_COLOR.convert("RGBA"), "PNG"),
    "bilevel png": _encoded(_COLOR.convert("1"), "PNG"),
    "deep png": _encoded(Image.fromarray(_RNG.integers(0, 65535, (HEIGHT, WIDTH), dtype=np.uint16)), "PNG"),
}


def _whole_and_window(data: bytes) -> None:
    """A picture that is taken when it is prepared can be decoded ever after, and a window is a part of the whole."""
    window = Window(5, 7, 11, 13)
    try:
        header = read_header(data)
        check_pixels(data)
    except DataError:
        decode_window(data, window, (HEIGHT, WIDTH))
        return
    whole = decode_image(data)
    assert whole.shape == (header.height, header.width, 3)
    if whole.shape == (HEIGHT, WIDTH, 3):
        assert np.array_equal(decode_window(data, window, (HEIGHT, WIDTH)), window.of(whole))


class Decoders:
    """Everything that reads strange bytes, by name: sound inputs and the reader. Works in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        pictures = list(PICTURES.values())
        self.all: dict[str, tuple[list[bytes], Callable[[bytes], object]]] = {
            "read_header": (pictures, read_header),
            "check_pixels": (pictures, check_pixels),
            "decode_image": (pictures, decode_image),
            "decode_mask": ([PICTURES["palette png"], PICTURES["grey png"]], decode_mask),
            "decode_window": (pictures, _whole_and_window),
            "unpack_mask": ([pack_mask(_LABELS)], lambda data: unpack_mask(data, "mask.npy.zst", HEIGHT, WIDTH)),
            "manifest": ([_manifest().encode()], lambda data: Manifest.parse(data, "manifest.json")),
            "index": ([_index("zstd"), _index("none")], self._read_index),
            "class table": ([_CLASSES], self._read_classes),
            "tar": ([_tar()], self._walk),
        }

    def fuzz(self, name: str, *, cases: int, seed: int) -> Counter[str]:
        """Read damaged inputs; gives how many were refused, and how many were read all the same."""
        inputs, read = self.all[name]
        rng = np.random.default_rng(seed)
        ends: Counter[str] = Counter()
        for _ in range(cases):
            _, data = damaged(rng, inputs[int(rng.integers(len(inputs)))])
            if data.startswith(b"\x89PNG") and rng.random() < 0.7:
                data = with_png_sums(data)
            try:
                read(data)
                ends["read"] += 1
            except DataError:
                ends["refused"] += 1
        return ends

    def _read_index(self, data: bytes) -> None:
        """Read an index that the manifest vouches for: the work of a hostile writer, not of a bad disk."""
        (self._folder / "samples.parquet").write_bytes(data)
        manifest = replace(_manifest(data), name="forged")
        (self._folder / "manifest.json").write_bytes(manifest.encode())
        read_table(self._folder, manifest)
        index = SampleIndex.load(self._folder, "train")
        assert index.class_pixels.shape == (6, 3)
        assert len(index.keys[0]) > 0

    def _read_classes(self, data: bytes) -> None:
        (self._folder / "classes.yaml").write_bytes(data)
        read_classes(self._folder / "classes.yaml").dataset("x", {})

    def _walk(self, data: bytes) -> None:
        (self._folder / "x.tar").write_bytes(data)
        pair_members(walk_tar(self._folder / "x.tar"))
